from __future__ import annotations

import dataclasses

import mlx.core as mx
import pytest

from mobileo_mlx.errors import ConfigError
from mobileo_mlx.models.dc_ae import DCAEConfig, Decoder, Encoder, Upsample
from mobileo_mlx.ops import bands

CONFIG = DCAEConfig(
    latent_channels=4,
    attention_head_dim=8,
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 16, 16),
    decoder_block_out_channels=(8, 16, 16),
    encoder_layers_per_block=(1, 2, 1),
    decoder_layers_per_block=(2, 1, 1),
    encoder_qkv_multiscales=((), (), (5,)),
    decoder_qkv_multiscales=((), (), (5,)),
)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5), (9, 2)])
def test_shapes(size: tuple[int, int]) -> None:
    assert CONFIG.factor == 4
    height, width = size
    image = Decoder(CONFIG)(mx.random.normal((2, height, width, 4)))
    assert image.shape == (2, 4 * height, 4 * width, 3)
    assert Encoder(CONFIG)(image).shape == (2, height, width, 4)


def test_rows_of_a_batch_do_not_mix() -> None:
    decoder, latents = Decoder(CONFIG), mx.random.normal((2, 4, 3, 4))
    assert mx.allclose(decoder(latents)[1:], decoder(latents[1:]), atol=1e-5)


@pytest.mark.parametrize("limit", [1, 2**12, 2**30])  # bytes: bands of four rows, of some, and the whole map
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (9, 5), (18, 3)])
def test_bands_are_the_whole(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], limit: int) -> None:
    monkeypatch.setattr(bands, "CPU_BYTES", limit)
    monkeypatch.setattr(bands, "GPU_BYTES", limit)
    height, width = size
    for module, x in (
        (Decoder(CONFIG), mx.random.normal((2, height, width, 4))),
        (Encoder(CONFIG), mx.random.normal((2, 4 * height, 4 * width, 3))),
    ):
        expected = module.train()(x)  # in the forms of training
        error = mx.abs(bands.run(module.eval(), x) - expected).max()
        assert error.item() <= 1e-5 * mx.abs(expected).max().item()


def test_bands_where_the_outermost_stage_has_no_blocks() -> None:
    config = dataclasses.replace(CONFIG, encoder_layers_per_block=(0, 2, 1), decoder_layers_per_block=(0, 1, 1))
    for module, x in (
        (Decoder(config), mx.random.normal((1, 5, 3, 4))),
        (Encoder(config), mx.random.normal((1, 20, 12, 3))),
    ):
        assert mx.allclose(bands.run(module.eval(), x), module.train()(x), atol=1e-5)


def test_memory_grows_with_the_width_and_not_with_the_height(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every block is local: beyond a few bands the image is in memory in no resolution but its own."""
    local = ("ResBlock",) * 3
    config = dataclasses.replace(
        CONFIG, decoder_block_types=local, decoder_qkv_multiscales=((), (), ()), decoder_block_out_channels=(64, 64, 64)
    )
    monkeypatch.setattr(bands, "CPU_BYTES", 2**14)
    monkeypatch.setattr(bands, "GPU_BYTES", 2**14)
    decoder = Decoder(config).eval()
    mx.eval(decoder.parameters())
    peaks = []
    for height in (32, 128):
        latents = mx.random.normal((1, height, 8, 4))
        mx.eval(latents)
        mx.reset_peak_memory()
        begin = mx.get_active_memory()
        for band in bands.stream(decoder, latents):
            assert band.shape[1] <= 64
        peaks.append(mx.get_peak_memory() - begin)
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(
    "change", [{"upsample_block_type": "pixel_shuffle"}, {"downsample_block_type": "pixel_unshuffle"}]
)
def test_other_resampling_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="pixel_"):
        DCAEConfig.from_dict(change)


def test_lists_of_a_json_file_become_tuples() -> None:
    multiscales = [[], [], [], [5], [3, 5], []]
    values = {"encoder_qkv_multiscales": multiscales, "in_channels": 3, "_class_name": "AutoencoderDC"}
    config = DCAEConfig.from_dict(values)
    assert config.encoder_qkv_multiscales == ((), (), (), (5,), (3, 5), ())
    assert hash(config) == hash(DCAEConfig.from_dict(values))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_taps_are_summed_before_they_are_rounded(dtype: mx.Dtype) -> None:
    upsample = Upsample(1, 1, shortcut=False)
    unit = mx.finfo(dtype).eps / 2
    weight = mx.zeros((3, 3))
    weight[1:, 1:] = mx.array([[1, 1.6 * unit], [0.9 * unit, 0.9 * unit]])
    upsample.set_dtype(dtype)
    upsample.conv.weight = weight.reshape(1, 3, 3, 1).astype(dtype)
    upsample.conv.bias = mx.zeros((1,), dtype=dtype)
    # The first of the four pixels that a small one becomes sees it through all four taps.
    (y, *_) = upsample(mx.ones((1, 1, 1, 1), dtype=dtype)).flatten().tolist()
    assert y == weight.sum().astype(dtype).item() > 1 + 2 * unit


def test_half_precision_keeps_its_dtype() -> None:
    for module, x in (
        (Decoder(CONFIG), mx.random.normal((1, 3, 5, 4))),
        (Encoder(CONFIG), mx.random.normal((1, 12, 20, 3))),
    ):
        module.set_dtype(mx.float16)
        assert module(x.astype(mx.float16)).dtype == mx.float16
        assert bands.run(module.eval(), x.astype(mx.float16)).dtype == mx.float16
