from __future__ import annotations

import mlx.core as mx
import pytest
from streaming import streamed

from mobileo_mlx.ops import backend
from mobileo_mlx.ops.cpu import depthwise
from mobileo_mlx.ops.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "multiplier", "size"),
    # Small maps take another way than large ones on a CPU; both have to give the same.
    [
        (3, 1, 1, (4, 5)),
        (7, 1, 1, (5, 4)),
        (7, 2, 2, (6, 8)),
        (3, 2, 1, (5, 7)),
        (3, 1, 2, (3, 3)),
        (3, 1, 1, (80, 60)),
    ],
)
def test_depthwise_convolution(
    kernel: int, stride: int, multiplier: int, size: tuple[int, int], bias: bool, dtype: mx.Dtype
) -> None:
    layer = DepthwiseConv2d(6, kernel, stride=stride, multiplier=multiplier, bias=bias)
    if bias:
        layer.bias = mx.random.normal(layer.bias.shape, key=mx.random.key(2))
    x = mx.random.normal((2, *size, 6), key=mx.random.key(1))
    expected = mx.conv2d(x, layer.weight, stride, kernel // 2, groups=6)
    expected = expected + layer.bias if bias else expected
    layer.set_dtype(dtype)
    y = layer(x.astype(dtype))
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == mx.float32 else 1e-2
    assert mx.allclose(y, expected, atol=tolerance)
    for part in (layer.eval()(x.astype(dtype)), streamed(layer, x.astype(dtype))):
        assert part.dtype == dtype
        assert mx.allclose(part, expected, atol=tolerance)


def test_a_convolution_with_another_weight_and_bias() -> None:
    layer, other = DepthwiseConv2d(6, 3), DepthwiseConv2d(6, 3)
    layer.bias, other.bias = mx.random.normal((6,)), mx.random.normal((6,))
    x = mx.random.normal((2, 9, 7, 6))
    expected, weight = other(x), layer.weight
    assert mx.allclose(layer.without_bias()(x), layer(x) - layer.bias, atol=1e-5)
    assert mx.array_equal(layer.without_bias().replaced(other.weight, other.bias)(x), expected)
    assert layer.weight is weight


def test_tiles_are_used_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training never: their gradient is a scatter."""
    layer, x = DepthwiseConv2d(8, 7), mx.random.normal((1, 80, 60, 8))
    taken, tiles = [], depthwise.Tiles
    monkeypatch.setattr(depthwise, "Tiles", lambda *a: taken.append(1) or tiles(*a))
    monkeypatch.setattr(backend, "backend", lambda: "cpu")
    layer(x)
    assert not taken
    layer.eval()(x)
    assert taken
