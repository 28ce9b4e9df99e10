from __future__ import annotations

import mlx.core as mx
import numpy as np

from mobileo_mlx.models.layers import relu_linear_attention


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
