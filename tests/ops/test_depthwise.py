from __future__ import annotations

import mlx.core as mx
import pytest
from streaming import streamed

from mobileo_mlx.ops import backend, depthwise
from mobileo_mlx.ops.bands import joined
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


def test_a_gain_and_a_shift_are_applied_after_a_depthwise_convolution() -> None:
    layer = DepthwiseConv2d(6, 3)
    layer.bias = mx.random.normal((6,))
    x, gain, shift = mx.random.normal((2, 9, 7, 6)), mx.random.normal((6,)), mx.random.normal((6,))
    y = joined(layer.stream(iter([x[:, :4], x[:, 4:]]), gain, shift))
    assert mx.allclose(y, layer(x) * gain + shift, atol=1e-5)


def test_tiles_are_used_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training never: their gradient is a scatter."""
    layer, x = DepthwiseConv2d(8, 7), mx.random.normal((1, 80, 60, 8))
    monkeypatch.delattr(depthwise, "_depthwise_by_tiles")
    layer(x)
    if backend.on_cpu():
        with pytest.raises(NameError):
            layer.eval()(x)


def test_shifts_pay_for_large_maps_and_not_for_large_batches_of_small_ones() -> None:
    assert depthwise._shifts_pay((2, 16, 16, 5760))
    assert depthwise._shifts_pay((1, 64, 64, 512))
    assert not depthwise._shifts_pay((64, 8, 8, 640))
