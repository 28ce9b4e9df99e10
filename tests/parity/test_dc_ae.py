"""The autoencoder against diffusers' AutoencoderDC, with the same random weights."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from mobileo_mlx.models.dc_ae import DCAEConfig, Decoder, Encoder, sanitize  # noqa: E402

from .common import assert_close, nchw, nhwc, normal, part, ported, randomised  # noqa: E402

RES, VIT = "ResBlock", "EfficientViTBlock"


def config(kinds: list[str], widths: list[int], encoder: list[int], decoder: list[int], scales: Any) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": kinds,
        "decoder_block_types": kinds,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": encoder,
        "decoder_layers_per_block": decoder,
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    }


CONFIGS = {
    # Depths differ from stage to stage, and between encoder and decoder.
    "uneven depths": config([RES, RES, VIT], [8, 16, 32], [1, 2, 3], [2, 3, 1], [[], [], [5]]),
    "two scales": config([RES, VIT, VIT], [8, 16, 16], [1, 1, 1], [1, 1, 1], [[], [3, 5], [5]]),
    # Without blocks in the first stage, the outermost convolutions change the size themselves.
    "no first stage": config([RES, RES, VIT], [8, 16, 16], [0, 1, 1], [0, 2, 1], [[], [], [5]]),
    "no scales": config([RES, VIT], [8, 16], [1, 1], [1, 2], [[], []]),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Encoder, Decoder]:
    values = CONFIGS[request.param]
    theirs = randomised(diffusers.AutoencoderDC(**values))
    ours = DCAEConfig.from_dict(dict(theirs.config))

    def layout(weights: dict[str, Any]) -> dict[str, Any]:
        return sanitize(weights, ours.attention_head_dim)

    state = theirs.state_dict()
    encoder = ported(Encoder(ours), part(state, "encoder."), layout)
    return theirs, encoder, ported(Decoder(ours), part(state, "decoder."), layout)


# The smallest maps take diffusers' quadratic form of the attention, the larger ones the linear form.
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 5), (6, 2)])
def test_decode(pair: tuple[Any, Encoder, Decoder], size: tuple[int, int]) -> None:
    theirs, _, decoder = pair
    latents = normal(2, 4, *size)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents)).sample
    assert_close(nchw(decoder(nhwc(latents))), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 5), (6, 2)])
def test_encode(pair: tuple[Any, Encoder, Decoder], size: tuple[int, int]) -> None:
    theirs, encoder, _ = pair
    factor = theirs.spatial_compression_ratio
    image = normal(2, 3, size[0] * factor, size[1] * factor)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(image)).latent
    assert_close(nchw(encoder(nhwc(image))), expected)
