"""The DiT against diffusers' SanaTransformer2DModel, with the same random weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from mobileo_mlx.models.sana import SanaConfig, SanaTransformer, sanitize  # noqa: E402

from .common import assert_close, nchw, nhwc, normal, ported, randomised  # noqa: E402

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "mlp_ratio": 2.5,
    "sample_size": 6,
    "patch_size": 1,
}


def pair(**changes: Any) -> tuple[Any, SanaTransformer]:
    config = CONFIG | changes
    theirs = randomised(diffusers.SanaTransformer2DModel(**config))
    ours = SanaTransformer(SanaConfig.from_dict(dict(theirs.config)))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "patch_embed.pos_embed"}
    return theirs, ported(ours, state, sanitize)


def check(
    theirs: Any, ours: SanaTransformer, size: tuple[int, int], timesteps: list[float], mask: np.ndarray | None = None
) -> None:
    latents = normal(len(timesteps), CONFIG["in_channels"], *size, seed=1)
    text = normal(len(timesteps), 7, CONFIG["caption_channels"], seed=2)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(latents),
            encoder_hidden_states=torch.from_numpy(text),
            timestep=torch.tensor(timesteps),
            encoder_attention_mask=None if mask is None else torch.from_numpy(mask),
        ).sample
    context = ours.encode_text(mx.array(text), None if mask is None else mx.array(mask))
    assert_close(nchw(ours(nhwc(latents), mx.array(timesteps), context)), expected)


@pytest.mark.parametrize("size", [(6, 6), (3, 5), (9, 2), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_forward(size: tuple[int, int], masked: bool) -> None:
    mask = np.array([[True] * 7, [True] * 4 + [False] * 3]) if masked else None
    check(*pair(), size, [500.0, 500.0], mask)


@pytest.mark.parametrize("timesteps", [[999.0, 3.0], [0.5, 862.25]])
def test_each_row_has_its_own_timestep(timesteps: list[float]) -> None:
    check(*pair(), (4, 4), timesteps)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("size", [(6, 6), (8, 8), (4, 6), (7, 3)])
def test_positions(scale: float, size: tuple[int, int]) -> None:
    check(*pair(interpolation_scale=scale), size, [250.0])


@pytest.mark.parametrize("scale", [None, 1.5])
@pytest.mark.parametrize("size", [(6, 6), (4, 10)])
def test_patches(scale: float | None, size: tuple[int, int]) -> None:
    check(*pair(patch_size=2, interpolation_scale=scale), size, [100.0, 900.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"out_channels": None},
        {"mlp_ratio": 1.7},
        {"norm_eps": 1e-3},
        # An inner width of the cross-attention that is not the model's.
        {"num_cross_attention_heads": 3, "cross_attention_head_dim": 8},
    ],
)
def test_configurations(changes: dict[str, Any]) -> None:
    check(*pair(**changes), (3, 4), [700.0])


def test_self_attention_is_clipped_in_float16_as_theirs() -> None:
    """With outputs far beyond the range of float16, and inputs and weights inside of it."""
    theirs, ours = pair()
    attention = theirs.transformer_blocks[0].attn1.half()
    with torch.no_grad():
        attention.to_out[0].weight.mul_(3e4)
    x = (20 * normal(2, 9, 32, seed=1)).astype(np.float16)
    with torch.no_grad():
        expected = attention(torch.from_numpy(x))
    assert torch.isfinite(expected).all()
    assert (expected.abs() == 65504).sum() > 10
    block = ours.transformer_blocks[0].attn1
    block.to_out[0].weight = block.to_out[0].weight.astype(mx.float16) * 3e4
    block.set_dtype(mx.float16)
    assert_close(block(mx.array(x)).astype(mx.float32), expected.float(), tolerance=2e-3)
