"""Causal attention in blocks equals MLX's own."""

from __future__ import annotations

import mlx.core as mx
import pytest

import mobileo_mlx.models.qwen2 as qwen2
from mobileo_mlx.models.qwen2 import Qwen2Config, Qwen2Model
from mobileo_mlx.ops.cpu.causal_attention import BLOCK, causal_attention


def normal(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(
    ("length", "earlier", "heads", "kv_heads"),
    [(2 * BLOCK + 9, 0, 4, 2), (BLOCK + 1, 0, 14, 2), (3 * BLOCK, 0, 2, 2), (BLOCK + 5, 37, 4, 1), (5, 0, 4, 2)],
)
def test_it_equals_the_plain_form(length: int, earlier: int, heads: int, kv_heads: int, sharpness: float) -> None:
    q = sharpness * normal(2, heads, length, 16, seed=0)
    k, v = (normal(2, kv_heads, earlier + length, 16, seed=seed) for seed in (1, 2))
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal")
    found = causal_attention(q, k, v, 0.25)
    assert found.shape == expected.shape
    assert mx.abs(found - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def model() -> Qwen2Model:
    mx.random.seed(0)
    return Qwen2Model(
        Qwen2Config(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
        )
    ).eval()


def test_the_language_model_takes_it_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, embeds = model(), normal(1, BLOCK + 20, 32, seed=3)
    calls: list[int] = []

    def recorded(*arguments: mx.array) -> mx.array:
        calls.append(1)
        return causal_attention(*arguments)

    monkeypatch.setattr(qwen2, "causal_attention", recorded)
    with mx.stream(mx.cpu):
        monkeypatch.setattr(qwen2.mx, "default_device", lambda: mx.cpu)
        found = llm(embeds)
        assert len(calls) == 2
        llm(embeds[:, :BLOCK])
        llm(embeds, attention_mask=mx.ones((1, BLOCK + 20), mx.bool_))
        llm.train()
        llm(embeds)
        llm.eval()
        monkeypatch.setattr(qwen2.mx, "default_device", lambda: mx.gpu)
        plain = llm(embeds)
        assert len(calls) == 2
    assert mx.abs(found - plain).max().item() <= 1e-5 * mx.abs(plain).max().item()
