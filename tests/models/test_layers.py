from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mobileo_mlx.models.layers import Conv2d, DepthwiseConv2d, GroupedLinear, relu_linear_attention


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
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx, "conv_general", recorded)
    flipped = layer(x)
    assert calls == ([True] if kernel == 3 else [])
    assert flipped.shape == plain.shape
    assert mx.allclose(flipped, plain, rtol=2e-3, atol=2e-3)


def test_full_precision_is_never_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(4, 4, 3, padding=1), mx.random.normal((1, 5, 5, 4))
    plain = layer(x)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.delattr(mx, "conv_general")
    assert mx.array_equal(layer(x), plain)


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
    assert mx.allclose(y, expected, atol=1e-5 if dtype == mx.float32 else 1e-2)


def test_grouped_linear_is_a_grouped_convolution() -> None:
    layer = GroupedLinear(12, 3)
    x = mx.random.normal((2, 5, 4, 12), key=mx.random.key(0))
    expected = mx.conv2d(x, layer.weight.reshape(12, 1, 1, 4), groups=3)
    assert mx.allclose(layer(x), expected, atol=1e-5)


def test_linear_attention_is_the_quadratic_sum() -> None:
    q, k, v = (mx.random.normal((2, 3, 7, 4), key=mx.random.key(i)) for i in range(3))
    scores = mx.maximum(q, 0) @ mx.maximum(k, 0).swapaxes(-1, -2)
    expected = (scores @ v) / (scores.sum(axis=-1, keepdims=True) + 1e-15)
    assert mx.allclose(relu_linear_attention(q, k, v, 1e-15), expected, atol=1e-5)


def test_linear_attention_does_not_overflow_in_half_precision() -> None:
    """4096 tokens of size 8: the sums are above 65504, the largest float16."""
    x = mx.full((1, 1, 4096, 8), 8.0, mx.float16)
    y = relu_linear_attention(x, x, x, 1e-15)
    assert y.dtype == mx.float16
    np.testing.assert_allclose(np.array(y), 8.0, rtol=1e-2)
