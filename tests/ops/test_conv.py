from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from streaming import streamed

from mobileo_mlx.ops import backend
from mobileo_mlx.ops.conv import Conv2d, GroupedLinear, UpsampledConv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 4), (1, 1, 1)])
def test_the_flipped_convolution_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, groups: int, bias: bool
) -> None:
    """In half precision on a GPU the weights are flipped twice; the result must not know it."""
    layer = Conv2d(8, 12, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
    layer.set_dtype(mx.float16)
    x = mx.random.normal((2, 9, 7, 8), key=mx.random.key(1)).astype(mx.float16)
    plain = nn.Conv2d.__call__(layer, x)
    calls = []
    convolve = mx.conv_general

    def recorded(*arguments: object, **options: object) -> mx.array:
        calls.append(options.get("flip"))
        return convolve(*arguments, **options)

    # Nothing is computed on another device: the layer is only told that there is one.
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(mx, "conv_general", recorded)
    flipped = layer(x)
    assert calls == ([True] if kernel == 3 else [])
    assert flipped.shape == plain.shape
    assert mx.allclose(flipped, plain, rtol=2e-3, atol=2e-3)


def test_full_precision_is_never_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(4, 4, 3, padding=1), mx.random.normal((1, 5, 5, 4))
    plain = layer(x)
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.delattr(mx, "conv_general")
    assert mx.array_equal(layer(x), plain)


@pytest.mark.parametrize("width", [20, 70])  # with and without Winograd on a CPU
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "dims"), [(3, 1, (32, 40)), (3, 2, (8, 12)), (3, 1, (32, 3)), (1, 1, (8, 8))]
)
def test_bands_of_a_convolution(kernel: int, stride: int, dims: tuple[int, int], bias: bool, width: int) -> None:
    layer = Conv2d(*dims, kernel, stride=stride, padding=kernel // 2, bias=bias)
    x = mx.random.normal((2, 14, width, dims[0]), key=mx.random.key(1))
    y, expected = streamed(layer, x), nn.Conv2d.__call__(layer, x)
    assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def _repeated_convolution(layer: UpsampledConv2d, x: mx.array) -> mx.array:
    large = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    return mx.conv2d(large, layer.weight, padding=1) + layer.bias


@pytest.mark.parametrize("width", [20, 70])
def test_upsampling_never_makes_the_large_image(width: int) -> None:
    layer = UpsampledConv2d(32, 36)
    layer.bias = mx.random.normal((36,))
    x = mx.random.normal((2, 9, width, 32), key=mx.random.key(1))
    expected = _repeated_convolution(layer, x)
    for y in (layer(x), streamed(layer, x), layer(x)):
        assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


@pytest.mark.parametrize("make", [lambda: Conv2d(32, 32, 3, padding=1), lambda: UpsampledConv2d(32, 32)])
@pytest.mark.parametrize("width", [20, 70])
def test_bands_keep_half_precision(make: Callable[[], Conv2d], width: int) -> None:
    layer, x = make(), mx.random.normal((1, 9, width, 32))
    expected = layer(x)
    layer.set_dtype(mx.float16)
    y = streamed(layer, x.astype(mx.float16))
    assert y.dtype == mx.float16
    assert mx.allclose(y, expected, atol=1e-2)


def test_grouped_linear_is_a_grouped_convolution() -> None:
    layer = GroupedLinear(12, 3)
    x = mx.random.normal((2, 5, 4, 12), key=mx.random.key(0))
    expected = mx.conv2d(x, layer.weight.reshape(12, 1, 1, 4), groups=3)
    assert mx.allclose(layer(x), expected, atol=1e-5)


def test_grouped_linear_is_one_product_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's CPU backend reads out of bounds where a product's number times the weight's size exceeds 32 bits."""
    layer, shapes = GroupedLinear(12, 3), []
    plain = mx.array.__matmul__
    monkeypatch.setattr(mx.array, "__matmul__", lambda a, b: shapes.append(a.shape) or plain(a, b))
    layer(mx.zeros((2, 5, 4, 12)))
    assert shapes == [(3, 40, 4)]
