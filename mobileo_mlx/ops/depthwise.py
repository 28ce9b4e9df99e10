"""Depthwise convolutions, in the form that the backend at hand has a fast kernel for.

A CPU has none: there they are matrix products of whole maps or of tiles, or sums of shifted maps. See `planes` for the
form of the vision tower's.
"""

from __future__ import annotations

import functools
import itertools

import mlx.core as mx
import mlx.nn as nn

from . import backend
from .bands import Strips, windows


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

    def __call__(self, x: mx.array, gain: mx.array | None = None, shift: mx.array | None = None) -> mx.array:
        """The result, times `gain` and plus `shift`, each (channels * multiplier,)."""
        return self._convolved(x, *self._scaled(gain, shift))

    def parts(self, x: mx.array, count: int) -> list[mx.array]:
        """The result with its channels in `count` equal parts.

        On a GPU the bias is added to the parts, which the compiler joins with what the caller does with them.
        """
        if backend.on_cpu():
            return list(mx.split(self(x), count, axis=-1))
        whole = mx.split(self._convolved(x, self.weight, None), count, axis=-1)
        return [part + bias for part, bias in zip(whole, mx.split(self.bias, count), strict=True)]

    def _convolved(self, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
        kernel = weight.shape[1]
        if not self.training and (kernel, self.stride, self.multiplier) == (3, 1, 1) and _shifts_pay(x.shape):
            return _depthwise_by_shifts(x, weight, bias)
        if backend.on_cpu() and _products_pay((*x.shape[:3], weight.shape[0]), kernel):
            y = _depthwise_by_products(self._repeated(x), weight, self.stride)
        elif backend.on_cpu() and not self.training:
            half = kernel // 2
            window = mx.pad(x, [(0, 0), (half, half), (0, 0), (0, 0)])
            y = _depthwise_by_tiles(window, self._tile_matrices(weight), kernel, self.stride)
        else:
            y = mx.conv2d(self._repeated(x), weight, self.stride, kernel // 2, groups=weight.shape[0])
        return y if bias is None else y + bias

    def stream(self, strips: Strips, gain: mx.array | None = None, shift: mx.array | None = None) -> Strips:
        """The strips of the same."""
        weight, bias = self._scaled(gain, shift)
        kernel = weight.shape[1]
        matrices = self._tile_matrices(weight) if backend.on_cpu() else None

        def convolved(window: mx.array) -> mx.array:
            if matrices is not None:
                y = _depthwise_by_tiles(window, matrices, kernel, self.stride)
            else:
                padding = (0, kernel // 2)
                y = mx.conv2d(self._repeated(window), weight, self.stride, padding, groups=weight.shape[0])
            return y if bias is None else y + bias

        return map(convolved, windows(strips, kernel, stride=self.stride, step=_TILE))

    def _scaled(self, gain: mx.array | None, shift: mx.array | None) -> tuple[mx.array, mx.array | None]:
        """Weight and bias of gain * convolution(x) + shift."""
        weight, bias = self.weight, self.get("bias")
        if gain is not None:
            weight = weight * gain[:, None, None, None]
            bias = None if bias is None else bias * gain
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return weight, bias

    def _repeated(self, x: mx.array) -> mx.array:
        # Metal's depthwise kernel wants as many outputs as inputs.
        return mx.repeat(x, self.multiplier, axis=-1) if self.multiplier > 1 else x

    def _tile_matrices(self, weight: mx.array) -> mx.array:
        """(channels, inputs of a tile, multiplier * outputs of a tile), for `_depthwise_by_tiles`."""
        kernel = weight.shape[1]
        basis = _tile_basis(kernel, self.stride)  # (k k, inputs, outputs)
        matrices = weight.astype(mx.float32).reshape(-1, kernel**2) @ basis.reshape(kernel**2, -1)
        matrices = matrices.reshape(-1, self.multiplier, *basis.shape[1:])
        return matrices.swapaxes(1, 2).reshape(matrices.shape[0], basis.shape[1], -1)


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


def _shifts_pay(shape: tuple[int, ...]) -> bool:
    """Whether a depthwise 3x3 convolution is faster as shifted copies than as matrix products (`_products_pay`).

    On a CPU one output takes the time of some 100 multiplications of a matrix product, whatever the size of the map;
    as a product it takes as many as the map has positions, and a part of making the matrix.
    """
    batch, height, width, _ = shape
    return backend.on_cpu() and height * width * (9 + batch) > 100 * batch


# Elements of as many rows as are computed at a time: what they are made of stays in a CPU's cache.
_SHIFTED = 2**17


def _depthwise_by_shifts(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """y[p] = sum over the 3x3 taps t of w[t] x[p + t], some rows of the map at a time.

    With the weights repeated for each pixel all that some rows are made of lies side by side in memory, what is
    between two rows included, which is computed in vain. The kernel that is compiled has vector instructions then.

    Args:
        x: (B, H, W, C).
        weight: (C, 3, 3, 1).
        bias: (C,), or None for none.
    """
    batch, height, width, channels = x.shape
    row = width + 2
    padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).reshape(batch, -1, channels)
    step = max(1, min(height, _SHIFTED // (row * channels)))
    repeated = (9, step * row - 2, channels)
    taps = list(mx.contiguous(mx.broadcast_to(weight.reshape(channels, 9).T[:, None], repeated)))
    start = mx.contiguous(mx.broadcast_to(mx.array(0, x.dtype) if bias is None else bias, repeated[1:]))
    parts = []
    for image, first in itertools.product(padded, range(0, height, step)):
        rows = min(step, height - first)
        pixels = rows * row - 2  # of the last row nothing follows
        y = start[:pixels]
        for i in range(3):
            begin = (first + i) * row
            y = _plus_products(
                y, *(a for j in range(3) for a in (image[begin + j : begin + j + pixels], taps[3 * i + j][:pixels]))
            )
        parts.append(mx.as_strided(y, (rows, width, channels), (row * channels, channels, 1)))
    return mx.concatenate(parts).reshape(x.shape)


@mx.compile
def _plus_products(y: mx.array, *factors: mx.array) -> mx.array:
    """y + x_1 w_1 + x_2 w_2 + ...: with more arrays than three products the compiler no longer takes vectors."""
    for x, w in zip(factors[::2], factors[1::2], strict=True):
        y = y + x * w
    return y


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


# Outputs of a tile in each direction: of 2 to 16, that which was fastest on the maps of the vision tower.
_TILE = 4


def _depthwise_by_tiles(window: mx.array, matrices: mx.array, kernel: int, stride: int) -> mx.array:
    """Depthwise convolution as one small dense matrix a channel, from overlapping tiles of inputs to tiles of outputs.

    On a CPU matrix products are so much faster than the plain loop of the depthwise convolution that the zeros in the
    matrices do not matter.

    Args:
        window: (B, (rows - 1) stride + kernel, W, C).
        matrices: (C, inputs of a tile, M * outputs of a tile).

    Returns:
        (B, rows, W / stride, M C), in the dtype of the window.
    """
    batch, height, width, channels = window.shape
    rows, columns = (height - kernel) // stride + 1, -(-width // stride)
    high, wide = -(-rows // _TILE), -(-columns // _TILE)
    side, half = (_TILE - 1) * stride + kernel, kernel // 2
    below = max(0, (high * _TILE - 1) * stride + kernel - height)
    right = max(0, (wide * _TILE - 1) * stride + kernel - half - width)
    x = mx.pad(window.astype(mx.float32), [(0, 0), (0, below), (half, right), (0, 0)])
    _, padded, row, _ = x.shape
    row *= channels
    shape = (channels, batch, wide, side, side)
    strides = (1, padded * row, _TILE * stride * channels, row, channels)
    pieces = []
    for i in range(high):  # one row of tiles after the other: what they copy stays in the CPU's cache
        tiles = mx.as_strided(x, shape, strides, i * _TILE * stride * row).reshape(channels, batch * wide, side**2)
        y = (tiles @ matrices).reshape(channels, batch, wide, -1, _TILE, _TILE)
        pieces.append(y.transpose(1, 4, 2, 5, 0, 3).reshape(batch, _TILE, wide * _TILE, -1))
    return mx.concatenate(pieces, axis=1)[:, :rows, :columns].astype(window.dtype)


@functools.cache
def _tile_basis(kernel: int, stride: int) -> mx.array:
    """For each tap of the kernel which input of a tile it takes to which output, (k k, inputs, outputs) of 0 or 1."""
    import numpy as np

    side = (_TILE - 1) * stride + kernel
    basis = np.zeros((kernel, kernel, side, side, _TILE, _TILE), np.float32)
    for i, j, row, column in np.ndindex(kernel, kernel, _TILE, _TILE):
        basis[i, j, row * stride + i, column * stride + j, row, column] = 1
    return mx.array(basis.reshape(kernel**2, side**2, _TILE**2))
