"""Every form of attention equals MLX's own."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest

from mobileo_mlx.models.qwen2 import Qwen2Config, Qwen2Model
from mobileo_mlx.ops import attention, backend
from mobileo_mlx.ops.cpu.attention import BLOCK, attention_by_heads, blockwise_causal_attention


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
    found = blockwise_causal_attention(q, k, v, 0.25)
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
        return blockwise_causal_attention(*arguments)

    monkeypatch.setattr(attention, "blockwise_causal_attention", recorded)
    with mx.stream(mx.cpu):
        monkeypatch.setattr(backend, "backend", lambda: "cpu")
        found = llm(embeds)
        assert len(calls) == 2
        llm(embeds[:, :BLOCK])
        llm(embeds, attention_mask=mx.ones((1, BLOCK + 20), mx.bool_))
        llm.train()
        llm(embeds)
        llm.eval()
        monkeypatch.setattr(backend, "backend", lambda: "metal")
        plain = llm(embeds)
        assert len(calls) == 2
    assert mx.abs(found - plain).max().item() <= 1e-5 * mx.abs(plain).max().item()


@pytest.mark.parametrize("tokens", [20, 400])  # few, and enough for the fast exponential
@pytest.mark.parametrize("form", [attention.padded_attention, attention_by_heads])
def test_other_forms_of_attention_are_attention(form: Callable[..., mx.array], tokens: int) -> None:
    q, k, v = (mx.random.normal((2, 3, tokens, 32), key=mx.random.key(i)) for i in range(3))
    expected = mx.softmax(q @ k.swapaxes(-1, -2), axis=-1) @ v
    assert mx.abs(form(q, k, v, 1.0) - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


@pytest.mark.skipif(not mx.metal.is_available(), reason="the fused kernel is Metal's")
def test_padded_heads_reach_the_fused_kernel() -> None:
    q = mx.random.normal((1, 24, 1024, 32)).astype(mx.float16)
    mx.eval(q)
    mx.reset_peak_memory()
    begin = mx.get_active_memory()
    mx.eval(attention.padded_attention(q, q, q, 0.2))
    assert mx.get_peak_memory() - begin < 24 * 1024**2 * 2  # the bytes of all scores
