from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mobileo_mlx.models.layers import GLUMBConv, relu_linear_attention
from mobileo_mlx.ops import backend
from mobileo_mlx.ops.cpu import depthwise


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


@pytest.mark.parametrize("shape", [(1, 16, 16, 4), (2, 1, 1, 4), (3, 5, 2, 4), (2, 40, 30, 4)])
@pytest.mark.parametrize("form", ["a CPU's", "a CPU's, row by row", "training's", "a GPU's"])
def test_every_form_of_a_feed_forward_s_depthwise_convolution_is_the_same(
    shape: tuple[int, ...], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff = GLUMBConv(4, 2.5).eval()
    ff.conv_depth.bias = mx.random.normal(ff.conv_depth.bias.shape)
    x = mx.random.normal(shape)
    hidden = nn.silu(ff.conv_inverted(x))
    weight, channels = ff.conv_depth.weight, hidden.shape[-1]
    hidden = mx.conv2d(hidden, weight, 1, 1, groups=channels) + ff.conv_depth.bias
    value, gate = mx.split(hidden, 2, axis=-1)
    expected = ff.conv_point(value * nn.silu(gate))
    monkeypatch.setattr(backend, "backend", lambda: "metal" if form == "a GPU's" else "cpu")
    if form == "a CPU's, row by row":
        monkeypatch.setattr(depthwise, "SHIFTED", 1)
    elif form == "training's":
        ff.train()
    assert mx.abs(ff(x) - expected).max() <= 1e-5 * mx.abs(expected).max()
