"""Layers that more than one network uses."""

from __future__ import annotations

import functools

import mlx.core as mx
import mlx.nn as nn


class Conv2d(nn.Conv2d):
    """`mlx.nn.Conv2d` that keeps full accuracy in half precision on a GPU.

    Metal silently takes Winograd F(6,3) for large dense 3x3 convolutions, whose rounding error in float16 and
    bfloat16 is some 36 times that of the direct form. A convolution with `flip=True` never takes that path, so in
    half precision the weights are flipped here and flipped back there.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if x.dtype == mx.float32 or self.weight.shape[1:3] != (3, 3) or mx.default_device() == mx.cpu:
            return super().__call__(x)
        y = mx.conv_general(
            x,
            self.weight[:, ::-1, ::-1],
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            flip=True,
        )
        return y + self.bias if "bias" in self else y


class DepthwiseConv2d(nn.Module):
    """A convolution that sees each channel alone, padded so that stride 1 keeps the size.

    Args:
        channels: input channels.
        kernel: side of the kernel, odd.
        stride: of both directions.
        multiplier: output channels for each input channel, side by side.
        bias: whether there is one.

    (B, H, W, channels) to (B, H / stride, W / stride, channels * multiplier), rounded up.
    """

    def __init__(self, channels: int, kernel: int, *, stride: int = 1, multiplier: int = 1, bias: bool = True):
        super().__init__()
        self.stride, self.multiplier = stride, multiplier
        dim = channels * multiplier
        self.weight = mx.random.uniform(-1 / kernel, 1 / kernel, (dim, kernel, kernel, 1))
        if bias:
            self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        if self.multiplier > 1:
            # Metal's depthwise kernel wants as many outputs as inputs.
            x = mx.repeat(x, self.multiplier, axis=-1)
        kernel = self.weight.shape[1]
        if mx.default_device() == mx.cpu and _products_pay(x.shape, kernel):
            y = _depthwise_by_products(x, self.weight, self.stride)
        else:
            y = mx.conv2d(x, self.weight, self.stride, kernel // 2, groups=x.shape[-1])
        return y + self.bias if "bias" in self else y


def _products_pay(shape: tuple[int, ...], kernel: int) -> bool:
    """Whether matrix products are faster than the CPU's depthwise convolution.

    That one is a plain loop, some 70 times slower for each multiplication than a matrix product; small maps and large
    batches, as in training, make up for the zeros in the matrices.
    """
    batch, height, width, channels = shape
    positions = height * width
    if channels * positions**2 > 2**24:
        return False  # the matrices would take more than 64 MiB
    return positions * (kernel**2 + batch) < 70 * batch * kernel**2


def _depthwise_by_products(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """Depthwise convolution as one dense matrix a channel, (input positions, output positions)."""
    batch, height, width, channels = x.shape
    kernel = weight.shape[1]
    basis, out_height, out_width = _shifts(height, width, kernel, stride)
    matrices = (weight.reshape(channels, kernel**2) @ basis).reshape(channels, height * width, -1)
    y = x.reshape(batch, height * width, channels).transpose(2, 0, 1) @ matrices  # (C, B, H' W')
    # The products run in float32, the only precision that reaches BLAS.
    return y.transpose(1, 2, 0).reshape(batch, out_height, out_width, channels).astype(x.dtype)


@functools.lru_cache(maxsize=64)
def _shifts(height: int, width: int, kernel: int, stride: int) -> tuple[mx.array, int, int]:
    """For each tap of the kernel which input position it takes to which output position, (k k, H W H' W') of 0 or 1."""
    import numpy as np

    out_height, out_width = -(-height // stride), -(-width // stride)
    basis = np.zeros((kernel, kernel, height, width, out_height, out_width), np.float32)
    for i in range(kernel):
        for j in range(kernel):
            for row in range(out_height):
                source = row * stride + i - kernel // 2
                if not 0 <= source < height:
                    continue
                for column in range(out_width):
                    source_column = column * stride + j - kernel // 2
                    if 0 <= source_column < width:
                        basis[i, j, source, source_column, row, column] = 1
    return mx.array(basis.reshape(kernel**2, -1)), out_height, out_width


class GroupedLinear(nn.Module):
    """A 1x1 convolution with groups, written as one batched matrix product (MLX's grouped convolution is slow).

    Args:
        channels: input and output channels.
        groups: number of groups; the weight has shape (groups, channels / groups, channels / groups), output first.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        width = channels // groups
        self.weight = mx.random.normal((groups, width, width)) * width**-0.5

    def __call__(self, x: mx.array) -> mx.array:
        groups, _, width = self.weight.shape
        y = x.reshape(*x.shape[:-1], groups, 1, width) @ self.weight.swapaxes(-1, -2)
        return y.reshape(x.shape)


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
        x = self.conv_depth(nn.silu(self.conv_inverted(x)))
        x, gate = mx.split(x, 2, axis=-1)
        return self.conv_point(x * nn.silu(gate))


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


def conv_weight(weight: mx.array) -> mx.array:
    """A convolution's weight from PyTorch's (O, I, *kernel) to MLX's (O, *kernel, I)."""
    return mx.moveaxis(weight, 1, -1)


def pointwise_weight(weight: mx.array) -> mx.array:
    """The weight (O, I, 1[, 1]) of a 1x1 convolution to that of the equivalent linear layer, (O, I)."""
    return weight.reshape(weight.shape[0], -1)
