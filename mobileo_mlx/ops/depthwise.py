"""Depthwise convolutions, in the form that is fast on the backend at hand; a CPU has no kernel (`cpu.depthwise`)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from . import backend
from .blocks import Window, Windowed
from .cpu import depthwise

# Images whose gradients Metal computes without unfolding: a weight's gradient is a convolution that takes the images
# for input channels, and from 5 on Metal's kernel wants a multiple of 16.
IMAGES = 4


class DepthwiseConv2d(nn.Module, Windowed):
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
        (dim, kernel, _, _), (_, height, width, _) = self.weight.shape, x.shape
        if not self.training:
            return self.window().apply(x, kernel // 2)
        # The gradient of tiles and shifts is a scatter.
        if backend.on_cpu() and depthwise.rows_pay(height, width, kernel):
            return self._biased(depthwise.by_rows(self._repeated(x), self.weight, self.stride))
        # On CUDA MLX (0.32.4) computes group after group: with 768 maps of 4x4 and 1,120 channels a gradient takes an
        # H200 62 ms, and 0.6 ms by products.
        if backend.backend() != "metal" and depthwise.products_pay((len(x), height, width, dim), kernel):
            return self._biased(depthwise.by_products(self._repeated(x), self.weight, self.stride))
        if self.stride > 1 and backend.backend() == "metal":
            parts = mx.split(x, list(range(IMAGES, len(x), IMAGES)))
            return self._biased(mx.concatenate([self._by_cells(part) for part in parts]))
        return self._plain(x, kernel // 2)

    def window(self) -> Window:
        kernel = self.weight.shape[1]
        if not backend.on_cpu():
            apply: Callable[..., mx.array] = self._plain
        elif (kernel, self.stride, self.multiplier) == (3, 1, 1):
            apply = depthwise.Shifts(self.weight, self.get("bias"))
        else:
            apply = depthwise.Tiles(self.weight, self.get("bias"), self.stride, self.multiplier)
        return Window(kernel, self.stride, 1, self.multiplier / self.stride**2, apply)

    def replaced(self, weight: mx.array, bias: mx.array) -> DepthwiseConv2d:
        """The same convolution but for its weight and its bias."""
        other = copy.copy(self)
        other.weight, other.bias = weight, bias
        return other

    def without_bias(self) -> DepthwiseConv2d:
        """The same convolution but for its bias."""
        plain = copy.copy(self)
        del plain.bias
        return plain

    def _plain(self, x: mx.array, zeros: int = 0) -> mx.array:
        dim, kernel, _, _ = self.weight.shape
        return self._biased(mx.conv2d(self._repeated(x), self.weight, self.stride, (zeros, kernel // 2), groups=dim))

    def _by_cells(self, x: mx.array) -> mx.array:
        """The sum over the cells of the stride (even and odd rows and columns), each a convolution of stride 1.

        A stride is an input dilation of the gradient, which Metal unfolds: 1.23 GB for a map of 256x256, 96 channels
        with two outputs each, kernel 7, in bfloat16. So computed, the largest array is 13 MB. (cuDNN takes strides.)
        """
        (dim, kernel, _, _), stride, (batch, height, width, channels) = self.weight.shape, self.stride, x.shape
        side = -(-kernel // stride)  # of the kernel of a cell
        rows, columns = (-(-size // stride) + side - 1 for size in (height, width))  # of a cell
        zeros, more = kernel // 2, side * stride - kernel
        below, right = rows * stride - height - zeros, columns * stride - width - zeros
        cells = mx.pad(x, [(0, 0), (zeros, below), (zeros, right), (0, 0)])
        cells = cells.reshape(batch, rows, stride, columns, stride, channels).transpose(2, 4, 0, 1, 3, 5)
        kernels = mx.pad(self.weight, [(0, 0), (0, more), (0, more), (0, 0)])
        kernels = kernels.reshape(dim, side, stride, side, stride, 1).transpose(2, 4, 0, 1, 3, 5)
        # Taken apart by one split, whose gradient is one copy.
        pairs = zip(cells.flatten(0, 1), kernels.flatten(0, 1), strict=True)
        first, *others = (mx.conv2d(self._repeated(cell), weight, groups=dim) for cell, weight in pairs)
        return sum(others, start=first)

    def _repeated(self, x: mx.array) -> mx.array:
        # Metal's depthwise kernel wants as many outputs as inputs.
        return mx.repeat(x, self.multiplier, axis=-1) if self.multiplier > 1 else x

    def _biased(self, y: mx.array) -> mx.array:
        return y + self.bias if "bias" in self else y
