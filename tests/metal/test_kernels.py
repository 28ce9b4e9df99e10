"""Operations whose kernels differ most between devices: on a GPU, in each precision, against float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from processes.sitecustomize import device

from mobileo_mlx.checkpoints.quantize import QuantizeSpec, quantize
from mobileo_mlx.ops.conv import Conv2d, GroupedLinear, UpsampledConv2d
from mobileo_mlx.ops.depthwise import DepthwiseConv2d

from .devices import DTYPES, cpu, largest_error, normal, on_cpu, rms_error

# What the largest maps of the autoencoder and of the tower go through.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3x3": (lambda: Conv2d(256, 256, 3, padding=1), (1, 32, 48, 256)),
    "3x3, stride 2": (lambda: Conv2d(128, 256, 3, stride=2, padding=1), (1, 32, 48, 128)),
    "3x3 of pixels": (lambda: Conv2d(3, 128, 3, padding=1), (1, 64, 64, 3)),
    "3x3 to pixels": (lambda: Conv2d(128, 3, 3, padding=1), (1, 64, 64, 128)),
    "stem": (lambda: Conv2d(3, 96, 3, stride=2, padding=1), (1, 64, 64, 3)),
    "upsampling": (lambda: UpsampledConv2d(256, 128), (1, 16, 24, 256)),
    "depthwise 3x3": (lambda: DepthwiseConv2d(192, 3), (1, 33, 48, 192)),
    "depthwise 7x7": (lambda: DepthwiseConv2d(384, 7), (1, 24, 32, 384)),
    "depthwise 7x7, stride 2, two outputs": (lambda: DepthwiseConv2d(96, 7, stride=2, multiplier=2), (1, 32, 64, 96)),
    "grouped 1x1": (lambda: GroupedLinear(96 * 3, 9), (1, 16, 24, 288)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name: str, dtype: str) -> None:
    """A sum of products that are rounded once: Metal's Winograd has some 36 times that error in half precision."""
    make, shape = LAYERS[name]
    x, exact = normal(*shape).astype(DTYPES[dtype]), mx.float32
    with cpu():
        mx.random.seed(0)
        layer = make().eval()
        layer.set_dtype(DTYPES[dtype])
        mx.eval(layer.parameters())
    y = layer(x)
    mx.eval(y)
    layer.set_dtype(exact)  # what was rounded stays so
    (expected,) = on_cpu(lambda: layer(x.astype(exact)))
    assert y.dtype == DTYPES[dtype]
    if dtype == "float32":
        assert largest_error(y, expected) <= 1e-4
    else:
        # The taps of an upsampling are sums of weights, rounded again.
        assert rms_error(y, expected) <= (2 if name == "upsampling" else 1) * mx.finfo(DTYPES[dtype]).eps / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 300])  # a token, a few, and so many that the weight is dequantized
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_products(bits: int, rows: int, dtype: str) -> None:
    x = normal(1, rows, 896).astype(DTYPES[dtype])
    with cpu():
        mx.random.seed(0)
        layer = nn.Sequential(nn.Linear(896, 512))
        layer.set_dtype(DTYPES[dtype])
        layer = quantize(layer, QuantizeSpec(bits)).eval()
        mx.eval(layer.parameters())
    y = layer(x)
    mx.eval(y)
    layer.set_dtype(mx.float32)
    (expected,) = on_cpu(lambda: layer(x.astype(mx.float32)))
    assert y.dtype == DTYPES[dtype]
    if dtype == "float32":
        assert largest_error(y, expected) <= 1e-4
    else:
        # MLX's kernels on a CPU add up in half precision, those on a GPU in float32.
        assert rms_error(y, expected) <= (2 if device() == "gpu" else 16) * mx.finfo(DTYPES[dtype]).eps / 2
