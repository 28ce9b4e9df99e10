"""Each saving of a prepared network against the plain form, and how much work it leaves."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from compiler import COMPILES
from mlx.utils import tree_flatten

from benchmarks.op_counter import pretend_device
from mobileo_mlx.checkpoints.quantize import QuantizeSpec, quantize
from mobileo_mlx.models.mcp import MCPConfig, MobileConditioningProjector
from mobileo_mlx.models.sana import CrossAttention, SanaConfig, SanaTransformer, TransformerBlock
from mobileo_mlx.models.sana_cross_attention import (
    TextInput,
    absorb,
    deduplicate_uniform,
    prepare_text_kv,
)
from mobileo_mlx.models.sana_prepared import PreparedSana

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


def prepared(dit: SanaTransformer, text: TextInput, unconditional: TextInput | None = None) -> PreparedSana:
    return PreparedSana(dit, mx.array(TIMESTEPS), text, unconditional)


def check(
    dit: SanaTransformer,
    latents: mx.array,
    text: TextInput,
    unconditional: TextInput | None = None,
    *,
    rows: tuple[mx.array, ...],
    mask: mx.array | None = None,
) -> None:
    """Every step against the plain form, whose rows read `rows`: of the unconditional text, then of the text."""
    network = prepared(dit, text, unconditional)
    for index in range(len(TIMESTEPS)):
        expected = mx.concatenate([plain(dit, latents, index, states, mask) for states in rows])
        assert difference(network(index, latents, guided=unconditional is not None), expected) <= 1e-5
    if unconditional is not None:
        assert difference(network(0, latents, guided=False), plain(dit, latents, 0, rows[-1], mask)) <= 1e-5


def with_halo(length: int, halo: int) -> mx.array:
    """States that are equal but near the ends, (1, length, 12)."""
    middle = text(1, 1)
    sides = mx.random.normal((1, 2 * halo, 12), key=mx.random.key(8))
    inner = mx.broadcast_to(middle, (1, max(length - 2 * halo, 0), 12))
    whole = mx.concatenate([sides[:, :halo], inner, sides[:, halo:]], axis=1)
    return whole[:, :length]


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
    check(build(**changes), noise(2, 4, 6), TextInput(states), rows=(states,))


def test_both_texts_of_guidance_may_have_their_own_length() -> None:
    unconditional, conditional = text(1, 5), text(2, 7)
    rows = (mx.repeat(unconditional, 2, axis=0), conditional)
    check(build(), noise(2), TextInput(conditional), TextInput(unconditional), rows=rows)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9, 60])
@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_keys_are_read_once_with_their_number_on_their_score(length: int, halo: int, batch: int) -> None:
    unconditional, conditional = with_halo(length, halo), text(1, length)
    short, _ = deduplicate_uniform(unconditional, halo)
    assert short.shape[1] == min(length, 2 * halo + 1)
    rows = tuple(mx.repeat(states, batch, axis=0) for states in (unconditional, conditional))
    check(build(), noise(batch), TextInput(conditional), TextInput(unconditional, halo=halo), rows=rows)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("length", [3, 9, 20])
def test_the_connector_makes_equal_states_equal_beyond_its_halo(blocks: int, kernel: int, length: int) -> None:
    config = MCPConfig(8, 16, 12, num_layers=2, num_refinement_blocks=blocks, kernel_size=kernel)
    connector = MobileConditioningProjector(config).eval()
    states = connector([mx.zeros((1, length, 8))] * 2)
    halo = connector.halo
    assert halo == blocks * (kernel // 2)
    if length > 2 * halo + 1:
        inner = states[:, halo : length - halo]
        assert mx.allclose(inner, inner[:, :1], rtol=0, atol=1e-6)
    if halo and length > 2 * halo:
        # Not one position fewer: the outermost that is kept for itself does differ.
        assert not mx.allclose(states[:, halo - 1], states[:, halo], atol=1e-6)
        assert not mx.allclose(states[:, length - halo], states[:, halo], atol=1e-6)


@pytest.mark.parametrize("length", [3, 300])
@pytest.mark.parametrize("halo", [None, 1])
def test_masks(length: int, halo: int | None) -> None:
    """Where rows are padded, nothing is taken for equal."""
    states = text(2, length)
    mask = mx.arange(length)[None] < mx.array([[2], [length]])
    check(build(), noise(2), TextInput(states, mask, halo), rows=(states,), mask=mask)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("prompts", [1, 2, 4])
@pytest.mark.parametrize("length", [4, 300])
def test_several_latents_read_one_prompt_or_several(guided: bool, prompts: int, length: int) -> None:
    states, other = text(prompts, length), -text(prompts, length)
    rows = tuple(mx.repeat(each, 4 // prompts, axis=0) for each in ((other, states) if guided else (states,)))
    check(build(), noise(4), TextInput(states), TextInput(other) if guided else None, rows=rows)


def test_the_form_of_a_text_depends_on_the_text_alone() -> None:
    dit = build()
    for length in (4, 60, 300):
        texts = TextInput(with_halo(length, 2), halo=2), TextInput(text(1, length)), TextInput(text(2, length))
        for uniform, one, two in prepare_text_kv(dit, texts):
            assert "a" in uniform
            assert ("a" in one) == (length == 4)  # up to 21 tokens, with heads of 16 in 64 channels
            assert "keys" in two


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_projections_are_absorbed(bits: int) -> None:
    dit, states = quantize(build(), QuantizeSpec(bits)), with_halo(9, 1)
    assert "a" in prepare_text_kv(dit, [TextInput(states, halo=1)])[0][0]
    check(dit, noise(1), TextInput(text(1)), TextInput(states, halo=1), rows=(states, text(1)))


class Doubled(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        return 2 * super().__call__(x)


def mixed(dit: SanaTransformer) -> SanaTransformer:
    """Blocks that differ in their layers: one plain, one quantized, one with a layer of another kind."""
    quantized = quantize(build(), QuantizeSpec(8)).transformer_blocks[1]
    dit.transformer_blocks[1] = quantized
    dit.transformer_blocks[2].attn2.to_q = Doubled(64, 64)
    return dit


def test_a_layer_that_may_compute_something_else_is_left_to_compute_it() -> None:
    dit, states = mixed(build()), with_halo(9, 1)
    absorbed = ["a" in each for (each,) in prepare_text_kv(dit, [TextInput(states, halo=1)])]
    assert absorbed == [True, True, False]
    check(dit, noise(1), TextInput(text(1)), TextInput(states, halo=1), rows=(states, text(1)))


# Compiled, as on a GPU


def counted_blocks(monkeypatch: pytest.MonkeyPatch) -> list[TransformerBlock]:
    """The blocks that are called: while tracing alone where they are compiled."""
    called: list[TransformerBlock] = []
    call = TransformerBlock.__call__

    def counting(self: TransformerBlock, *arguments: Any) -> mx.array:
        called.append(self)
        return call(self, *arguments)

    monkeypatch.setattr(TransformerBlock, "__call__", counting)
    return called


def compiled(dit: SanaTransformer, text: TextInput, unconditional: TextInput | None = None) -> PreparedSana:
    with pretend_device("metal"):
        return prepared(dit, text, unconditional)


PREPARATIONS: list[Callable[[SanaTransformer], SanaTransformer]] = [
    lambda dit: dit,
    lambda dit: quantize(dit, QuantizeSpec(4)),
    mixed,
]


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=["plain", "quantized", "mixed"])
def test_a_compiled_block_is_the_plain_one(
    prepare: Callable[[SanaTransformer], SanaTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    dit, latents, states = prepare(build()), noise(2), with_halo(9, 1)
    parameters = [mx.array(p) for _, p in tree_flatten(dit.parameters())]
    network = compiled(dit, TextInput(text(1)), TextInput(states, halo=1))
    kinds = 3 if prepare is mixed else 1
    rows = [mx.repeat(each, 2, axis=0) for each in (states, text(1))]
    called = counted_blocks(monkeypatch)
    with pretend_device("metal"):
        ours = [[network(index, latents, guided=guided) for guided in (True, False)] for index in range(3)]
        mx.eval(ours)
    if COMPILES:
        assert len(called) == 2 * kinds  # once for each shape, not for each block and step
    for index, (guided, alone) in enumerate(ours):
        expected = [plain(dit, latents, index, each) for each in rows]
        assert difference(guided, mx.concatenate(expected)) <= 1e-5
        assert difference(alone, expected[-1]) <= 1e-5
    assert all(mx.array_equal(a, b) for a, (_, b) in zip(parameters, tree_flatten(dit.parameters()), strict=True))


def test_a_new_size_is_traced_again() -> None:
    dit, states = build(), text(1)
    network = compiled(dit, TextInput(states))
    for height, width in ((4, 3), (3, 4), (2, 2)):
        latents = noise(1, height, width)
        with pretend_device("metal"):
            ours = network(1, latents, guided=False)
            mx.eval(ours)
        assert difference(ours, plain(dit, latents, 1, states)) <= 1e-5


@pytest.mark.parametrize("backend", ["cpu", "metal"])
def test_a_donated_network_gives_up_what_no_step_reads(backend: str) -> None:
    dit, timesteps = build(), mx.array(TIMESTEPS)
    texts = TextInput(text(1)), TextInput(with_halo(9, 2), halo=2)
    with pretend_device(backend):
        expected = PreparedSana(dit, timesteps, *texts)(1, noise(1), guided=True)
        mx.eval(expected, dit.parameters())
        unused = [
            weakref.ref(layer) for block in dit.transformer_blocks for layer in (block.attn2.to_k, block.attn2.to_v)
        ]
        donated = PreparedSana(dit, timesteps, *texts, donate=True)
        assert not any(layer() for layer in unused)
        assert mx.array_equal(donated(1, noise(1), guided=True), expected)


@pytest.mark.parametrize("backend", ["cpu", "metal"])
def test_nothing_that_is_prepared_keeps_the_network_alive(backend: str) -> None:
    dit = build()
    network = weakref.ref(dit)
    gc.disable()  # no cycle may need it
    try:
        with pretend_device(backend):
            ready = prepared(dit, TextInput(text(1)))
            mx.eval(ready(0, noise(1), guided=False))
        del dit, ready
        assert network() is None
    finally:
        gc.enable()


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
    text = attention.read(states)
    short = absorb(attention, text)
    assert short is not None
    # What is added to the stream, without the rounding of the stream itself.
    scores = mx.addmm(short["a_bias"], x, short["a"].T).reshape(1, 400, 4, 40)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(1, 400, 160)
    ours, theirs = weights @ short["b"], attention(x, text)
    attention.set_dtype(mx.float32)
    x, states = x.astype(mx.float32), states.astype(mx.float32)
    exact = attention(x, attention.read(states))

    def off(y: mx.array) -> float:
        return math.sqrt(mx.square(y.astype(mx.float32) - exact).mean().item())

    assert off(ours) <= 1.25 * off(theirs)


@pytest.mark.parametrize("backend", ["cpu", "metal"])
@pytest.mark.parametrize("guided", [False, True])
def test_an_outlier_of_the_self_attention_stays_finite_in_float16(backend: str, guided: bool) -> None:
    """In the plain form, and in the prepared one, whose blocks are compiled for a GPU."""
    dit = build()
    for block in dit.transformer_blocks:
        block.attn1.to_out[0].bias = mx.zeros((64,)).at[0].add(8e4)
        block.scale_shift_table = block.scale_shift_table * 0.01  # gates, too
    dit.time_embed.linear.weight *= 0
    dit.time_embed.linear.bias = mx.full(dit.time_embed.linear.bias.shape, 0.01)
    dit.set_dtype(mx.float16)
    with pretend_device(backend):
        texts = [TextInput(text(1))] * 2
        prepared = PreparedSana(dit, mx.array(TIMESTEPS), *texts)(1, noise(1), guided=guided)
        alone = plain(dit, noise(1), 1, text(1))
    assert prepared.dtype == alone.dtype == mx.float16
    assert mx.isfinite(alone).all()
    assert mx.isfinite(prepared).all()
