from __future__ import annotations

import dataclasses

import mlx.core as mx
import pytest

from mobileo_mlx.models.sana import SanaConfig, SanaTransformer

CONFIG = SanaConfig(
    num_layers=2,
    num_attention_heads=4,
    attention_head_dim=8,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    caption_channels=12,
    in_channels=4,
    out_channels=4,
    sample_size=4,
)


def build(**changes: object) -> SanaTransformer:
    mx.random.seed(0)
    return SanaTransformer(dataclasses.replace(CONFIG, **changes)).eval()


def text(batch: int, length: int = 5) -> mx.array:
    return mx.random.normal((batch, length, 12), key=mx.random.key(1))


def latents(batch: int, height: int, width: int) -> mx.array:
    return mx.random.normal((batch, height, width, 4), key=mx.random.key(2))


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5), (16, 2)])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_any_size_of_latents(size: tuple[int, int], scale: float | None) -> None:
    dit = build(interpolation_scale=scale)
    velocity = dit(latents(2, *size), mx.array([500.0, 3.0]), dit.encode_text(text(2)))
    assert velocity.shape == (2, *size, 4)
    assert mx.isfinite(velocity).all()


def test_patches() -> None:
    dit = build(patch_size=2)
    velocity = dit(latents(1, 4, 6), mx.array([500.0]), dit.encode_text(text(1)))
    assert velocity.shape == (1, 4, 6, 4)


def test_the_input_decides_the_output_channels_where_none_are_given() -> None:
    dit = build(out_channels=None)
    assert dit(latents(1, 2, 2), mx.array([1.0]), dit.encode_text(text(1))).shape == (1, 2, 2, 4)


def test_rows_of_a_batch_do_not_mix() -> None:
    dit = build()
    x, t = latents(2, 3, 4), mx.array([900.0, 20.0])
    both = dit(x, t, dit.encode_text(text(2)))
    alone = dit(x[1:], t[1:], dit.encode_text(text(2)[1:]))
    assert mx.allclose(both[1:], alone, atol=1e-5)


def test_masked_text_is_not_seen() -> None:
    dit, x, t = build(), latents(1, 3, 3), mx.array([400.0])
    mask = mx.array([[True] * 5 + [False] * 3])
    padded = mx.concatenate([text(1), mx.full((1, 3, 12), 7.0)], axis=1)
    seen = dit(x, t, dit.encode_text(text(1)))
    assert mx.allclose(dit(x, t, dit.encode_text(padded, mask)), seen, atol=1e-5)
    assert not mx.allclose(dit(x, t, dit.encode_text(padded)), seen, atol=1e-3)


def test_text_latents_and_timestep_all_count() -> None:
    dit, x, t = build(), latents(1, 3, 3), mx.array([400.0])
    base = dit(x, t, dit.encode_text(text(1)))
    assert not mx.allclose(base, dit(x, t, dit.encode_text(text(1) + 1)), atol=1e-4)
    assert not mx.allclose(base, dit(x, t + 1, dit.encode_text(text(1))), atol=1e-4)
    assert not mx.allclose(base, dit(x[:, :, ::-1], t, dit.encode_text(text(1)))[:, :, ::-1], atol=1e-4)


def test_half_precision_keeps_its_dtype() -> None:
    dit = build()
    dit.set_dtype(mx.float16)
    context = dit.encode_text(text(1).astype(mx.float16))
    velocity = dit(latents(1, 4, 4).astype(mx.float16), mx.array([999.0]), context)
    assert velocity.dtype == mx.float16
    assert mx.isfinite(velocity).all()


@pytest.mark.parametrize(("dtype", "largest"), [(mx.float16, 65504.0), (mx.bfloat16, 2.0e5), (mx.float32, 2.0e5)])
def test_what_self_attention_reads_is_clipped_in_float16(dtype: mx.Dtype, largest: float) -> None:
    """As in diffusers; elsewhere it is inside of the range."""
    attention = build().transformer_blocks[0].attn1
    attention.to_out[0].bias = mx.zeros((32,)).at[:2].add(mx.array([2e5, -2e5]))
    attention.set_dtype(dtype)
    y = attention(mx.random.normal((1, 6, 32)).astype(dtype)).astype(mx.float32)
    assert mx.isfinite(y).all()
    assert y.max().item() == pytest.approx(largest, rel=0.01)
    assert y.min().item() == pytest.approx(-largest, rel=0.01)


def test_a_number_that_is_none_stays_one() -> None:
    """Clipping does not hide what was wrong before it."""
    attention = build().transformer_blocks[0].attn1
    attention.set_dtype(mx.float16)
    assert mx.isnan(attention(mx.full((1, 6, 32), mx.nan, mx.float16))).all()
