"""Each saving of `sana_steps` against the plain form, and how much work it leaves."""

from __future__ import annotations

import copy
import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobileo_mlx.checkpoints.quantize import QuantizeSpec, quantize
from mobileo_mlx.models import sana_cross_attention, sana_prepared
from mobileo_mlx.models.mcp import MCPConfig, MobileConditioningProjector
from mobileo_mlx.models.sana import CrossAttention, SanaConfig, SanaTransformer, TransformerBlock
from mobileo_mlx.models.sana_cross_attention import (
    AbsorbedTextKV,
    Text,
    TextKV,
    absorbed,
    absorbing_pays,
    distinct,
)
from mobileo_mlx.models.sana_prepared import JoinedAttention, PreparedSana, joined, run_block

SMALL = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 16,
    "caption_channels": 12,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 4,
}
TIMESTEPS = [999.0, 640.0, 3.0]


def build(**changes: Any) -> SanaTransformer:
    mx.random.seed(0)
    dit = SanaTransformer(SanaConfig(**(SMALL | changes)))
    for _, module in dit.named_modules():
        if isinstance(module, nn.Linear) and "bias" in module:
            module.bias = mx.random.normal(module.bias.shape)  # so that a bias that is lost shows
    return dit.eval()


def text(rows: int, length: int = 5) -> mx.array:
    return mx.random.normal((rows, length, 12), key=mx.random.key(1))


def noise(batch: int, height: int = 4, width: int = 3) -> mx.array:
    return mx.random.normal((batch, height, width, 4), key=mx.random.key(2))


def difference(ours: mx.array, plain: mx.array) -> float:
    assert ours.shape == plain.shape
    return (mx.abs(ours - plain).max() / mx.abs(plain).max()).item()


def plain(
    dit: SanaTransformer, latents: mx.array, index: int, states: mx.array, mask: mx.array | None = None
) -> mx.array:
    """The plain form on rows that already are what each reads."""
    timestep = mx.full((latents.shape[0],), TIMESTEPS[index])
    return dit(latents, timestep, dit.encode_text(states, mask))


def check(
    dit: SanaTransformer,
    texts: list[Text],
    halves: int,
    latents: mx.array,
    states: mx.array,
    mask: mx.array | None = None,
) -> None:
    """Both forms: that which leaves the network as it is, and that which takes one apart."""
    network = PreparedSana(dit, texts, halves, mx.array(TIMESTEPS), latents.shape)
    apart = PreparedSana(copy.deepcopy(dit), texts, halves, mx.array(TIMESTEPS), latents.shape, consume=True)
    for index in range(len(TIMESTEPS)):
        expected = plain(dit, mx.concatenate([latents] * halves), index, states, mask)
        assert difference(network(index, latents), expected) <= 1e-5
        assert difference(apart(index, latents), expected) <= 1e-5


def edged(length: int, edge: int) -> mx.array:
    """States that are equal but near the ends, (1, length, 12)."""
    middle = text(1, 1)
    sides = mx.random.normal((1, 2 * edge, 12), key=mx.random.key(8))
    inner = mx.broadcast_to(middle, (1, max(length - 2 * edge, 0), 12))
    whole = mx.concatenate([sides[:, :edge], inner, sides[:, edge:]], axis=1)
    return whole[:, :length]


@pytest.mark.parametrize("absorbs", [True, False])
def test_one_text_alone_is_its_rows_and_shares_what_is_prepared(absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sana_cross_attention, "absorbing_pays", lambda *sizes: absorbs)
    dit, latents = build(), noise(2)
    both = PreparedSana(dit, [Text(text(1, 5)), Text(text(2, 7))], 2, mx.array(TIMESTEPS), latents.shape)
    one = both.alone(-1)
    for index in range(len(TIMESTEPS)):
        rows = one(index, latents)
        assert rows.shape[0] == 2
        assert difference(rows, both(index, latents)[2:]) <= 1e-5
    assert all(mine is theirs[-1] for (mine,), theirs in zip(one._texts, both._texts, strict=True))


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"patch_size": 2, "sample_size": 4},
    {"out_channels": None, "attention_bias": True},
    {"interpolation_scale": 2.0},
    {"num_cross_attention_heads": 3, "cross_attention_head_dim": 8},  # narrower than the model
    {"num_layers": 1, "norm_eps": 1e-3},
]


@pytest.mark.parametrize("changes", CONFIGURATIONS)
def test_every_step_is_that_of_the_plain_form(changes: dict[str, Any]) -> None:
    states = text(2)
    check(build(**changes), [Text(states)], 2, noise(1, 4, 6), states)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9, 60])
@pytest.mark.parametrize("edge", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_keys_are_read_once_with_their_number_on_their_score(length: int, edge: int, batch: int) -> None:
    unconditional, conditional = edged(length, edge), text(1, length)
    short = distinct(unconditional, edge)
    assert short.states.shape[1] == min(length, 2 * edge + 1)
    rows = mx.concatenate([mx.repeat(unconditional, batch, axis=0), mx.repeat(conditional, batch, axis=0)])
    check(build(), [short, Text(conditional)], 2, noise(batch), rows)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("length", [3, 9, 20])
def test_the_connector_makes_equal_states_equal_beyond_its_reach(blocks: int, kernel: int, length: int) -> None:
    config = MCPConfig(8, 16, 12, num_layers=2, num_refinement_blocks=blocks, kernel_size=kernel)
    connector = MobileConditioningProjector(config).eval()
    states = connector([mx.zeros((1, length, 8))] * 2)
    edge = connector.reach
    assert edge == blocks * (kernel // 2)
    if length > 2 * edge + 1:
        inner = states[:, edge : length - edge]
        assert mx.allclose(inner, inner[:, :1], rtol=0, atol=1e-6)
    if edge and length > 2 * edge:
        # Not one position fewer: the outermost that is kept for itself does differ.
        assert not mx.allclose(states[:, edge - 1], states[:, edge], atol=1e-6)
        assert not mx.allclose(states[:, length - edge], states[:, edge], atol=1e-6)


@pytest.mark.parametrize("length", [3, 300])
def test_masks(length: int) -> None:
    states = text(2, length)
    mask = mx.arange(length)[None] < mx.array([[2], [length]])
    check(build(), [Text(states, mask)], 2, noise(1), states, mask)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("prompts", [1, 2, 4])
@pytest.mark.parametrize("length", [4, 300])
def test_several_latents_read_one_prompt_or_several(guided: bool, prompts: int, length: int) -> None:
    halves = 2 if guided else 1
    states = text(halves * prompts, length)
    check(build(), [Text(states)], halves, noise(4), mx.repeat(states, 4 // prompts, axis=0))


def test_a_long_text_keeps_its_queries_and_a_short_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[tuple[type, ...]] = []

    def spy(block: TransformerBlock, x: mx.array, table: mx.array, attention: Any, texts: Any, *rest: Any) -> mx.array:
        forms.append(tuple(type(text) for text in texts))
        return run_block(block, x, table, attention, texts, *rest)

    monkeypatch.setattr(sana_prepared, "run_block", spy)
    unconditional, conditional = edged(300, 2), text(1, 300)
    rows = mx.concatenate([unconditional, conditional])
    check(build(), [distinct(unconditional, 2), Text(conditional)], 2, noise(1), rows)
    assert set(forms) == {(AbsorbedTextKV, TextKV)}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_projections_are_absorbed(bits: int) -> None:
    dit, states = quantize(build(), QuantizeSpec(bits)), text(2)
    keys, values = dit.transformer_blocks[0].attn2.keys_values(dit.project_text(states))
    assert absorbed(dit.transformer_blocks[0].attn2, keys, values, None) is not None
    check(dit, [Text(states)], 2, noise(1), states)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_one_product_makes_queries_keys_and_values(bits: int | None, bias: bool) -> None:
    dit = build(attention_bias=bias)
    attention = (dit if bits is None else quantize(dit, QuantizeSpec(bits))).transformer_blocks[0].attn1
    one, x = joined(attention), mx.random.normal((2, 7, 64), key=mx.random.key(4))
    assert one is not None
    assert difference(one(x), attention(x)) <= 1e-5


def test_projections_in_unequal_bits_stay_apart() -> None:
    attention = build().transformer_blocks[0].attn1
    attention.to_v = quantize(build(), QuantizeSpec(4)).transformer_blocks[0].attn1.to_v
    assert joined(attention) is None
    attention.to_q, attention.to_k = (
        quantize(build(), QuantizeSpec(8)).transformer_blocks[0].attn1[name] for name in ("to_q", "to_k")
    )
    assert joined(attention) is None


@pytest.mark.parametrize(("length", "queries_stay"), [(5, False), (300, True)])
def test_a_network_that_is_taken_apart_holds_no_weight_twice(length: int, queries_stay: bool) -> None:
    dit, latents = build(), noise(1)
    names = [("attn1", "to_q"), ("attn2", "to_k"), ("attn2", "to_v"), ("attn2", "to_q"), ("attn2", "to_out")]
    network = PreparedSana(dit, [Text(text(1, length))], 1, mx.array(TIMESTEPS), latents.shape, consume=True)
    for block in dit.transformer_blocks:
        assert [name in block[part] for part, name in names] == [False] * 3 + [queries_stay] * 2
    assert all(isinstance(attention, JoinedAttention) for attention in network._attentions)


def test_taking_a_network_apart_takes_less_memory_than_the_network() -> None:
    dit, latents, steps = build(num_attention_heads=16), noise(1), mx.array(TIMESTEPS)
    states = text(2)
    mx.eval(dit.parameters(), states)
    before = mx.get_active_memory()
    kept = PreparedSana(dit, [Text(states)], 2, steps, latents.shape)
    assert mx.get_active_memory() > before
    del kept
    network = PreparedSana(dit, [Text(states)], 2, steps, latents.shape, consume=True)
    assert mx.get_active_memory() < before
    assert network(0, latents).shape[0] == 2


def test_a_layer_that_may_compute_something_else_is_left_to_compute_it() -> None:
    class Doubled(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            return 2 * super().__call__(x)

    dit, states = build(), text(2)
    attention = dit.transformer_blocks[1].attn2
    attention.to_q = Doubled(64, 64)
    keys, values = attention.keys_values(dit.project_text(states))
    assert absorbed(attention, keys, values, None) is None
    dit.transformer_blocks[2].attn1.to_v = Doubled(64, 64, bias=False)
    assert joined(dit.transformer_blocks[2].attn1) is None
    check(dit, [Text(states)], 2, noise(1), states)


def test_absorbing_pays_up_to_76_keys_at_full_size() -> None:
    queries = 20 * 256
    assert absorbing_pays(1152, 1152, 16, 72, queries)
    assert not absorbing_pays(1152, 1152, 16, 77, queries)
    # What is computed once does not pay in a single step of a small picture.
    assert not absorbing_pays(1152, 1152, 16, 60, 16)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 8.0])
def test_in_half_precision_absorbing_loses_no_more_than_the_projections(dtype: mx.Dtype, offset: float) -> None:
    mx.random.seed(3)
    config = SanaConfig(**(SMALL | {"num_cross_attention_heads": 4, "cross_attention_head_dim": 16}))
    attention = CrossAttention(config)
    for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        layer.weight = mx.random.normal(layer.weight.shape) * 0.2
    x = mx.random.normal((1, 400, 64))
    # Keys have much in common in trained models; the offset gives them that.
    states = mx.random.normal((1, 40, 64)) + offset * mx.random.normal((1, 1, 64))
    x, states = x.astype(dtype), states.astype(dtype)
    attention.set_dtype(dtype)
    keys, values = attention.keys_values(states)
    short = absorbed(attention, keys, values, None)
    assert short is not None
    # What is added to the stream, without the rounding of the stream itself.
    scores = mx.addmm(short.a_bias, x, short.a.swapaxes(-1, -2)).reshape(1, 400, 4, 40)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(1, 400, 160)
    ours, theirs = weights @ short.b, attention(x, keys, values, None)
    attention.set_dtype(mx.float32)
    exact = attention(x.astype(mx.float32), *attention.keys_values(states.astype(mx.float32)), None)

    def off(y: mx.array) -> float:
        return math.sqrt(mx.square(y.astype(mx.float32) - exact).mean().item())

    assert off(ours) <= 1.25 * off(theirs)
