"""Layers that more than one network uses."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .conv import DepthwiseConv2d


class GLUMBConv(nn.Module):
    """The Mix-FFN of SANA (arXiv 2410.10629, section 2.3): 1x1, SiLU, depthwise 3x3, gate, 1x1.

    Args:
        channels: input and output channels.
        expand_ratio: hidden channels / channels.

    Input and output have shape (B, H, W, channels).
    """

    def __init__(self, channels: int, expand_ratio: float):
        super().__init__()
        hidden = int(expand_ratio * channels)
        self.conv_inverted = nn.Linear(channels, 2 * hidden)
        self.conv_depth = DepthwiseConv2d(2 * hidden, 3)
        self.conv_point = nn.Linear(hidden, channels, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = nn.silu(self.conv_inverted(x))
        if not self.training and mx.default_device() == mx.cpu and _shifts_pay(x.shape):
            x = _depthwise_by_shifts(x, self.conv_depth.weight, self.conv_depth.bias)
        else:
            x = self.conv_depth(x)
        x, gate = mx.split(x, 2, axis=-1)
        return self.conv_point(x * nn.silu(gate))


def _shifts_pay(shape: tuple[int, ...]) -> bool:
    """Whether a depthwise 3x3 convolution is faster as shifted copies than as matrix products (`_products_pay`).

    On a CPU one output takes the time of some 140 multiplications of a matrix product, whatever the size of the map;
    as a product it takes as many as the map has positions, and a part of making the matrix.
    """
    batch, height, width, _ = shape
    return height * width * (9 + batch) > 140 * batch


@mx.compile
def _depthwise_by_shifts(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """y[p] = sum over the 3x3 taps t of w[t] x[p + t], one multiplication of whole maps a tap: compiled, one loop.

    Args:
        x: (B, H, W, C).
        weight: (C, 3, 3, 1).
        bias: (C,).
    """
    _, height, width, channels = x.shape
    padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    # A copy with the taps outermost, so that the loop reads them side by side.
    taps = mx.contiguous(weight.reshape(channels, 3, 3).transpose(1, 2, 0))
    return bias + sum(padded[:, i : i + height, j : j + width] * taps[i, j] for i in range(3) for j in range(3))


def relu_linear_attention(q: mx.array, k: mx.array, v: mx.array, eps: float) -> mx.array:
    """Linear attention with ReLU kernels (SANA, section 2.2): O(N) in the number of tokens.

    Args:
        q, k, v: (..., N, D). Computed in float32, because the sums over N overflow float16.
        eps: added to the normaliser, which is zero where all of a query's features are.

    Returns:
        (..., N, D) in the dtype of `v`.
    """
    dtype = v.dtype
    q, k, v = (mx.maximum(q, 0).astype(mx.float32), mx.maximum(k, 0).astype(mx.float32), v.astype(mx.float32))
    state = k.swapaxes(-1, -2) @ v  # (..., D, D)
    normaliser = q @ k.sum(axis=-2)[..., None]  # (..., N, 1)
    return ((q @ state) / (normaliser + eps)).astype(dtype)
