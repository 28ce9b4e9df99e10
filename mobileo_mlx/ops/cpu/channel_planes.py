"""Maps with one channel after the other, of which a CPU computes depthwise convolutions as matrix products.

A tile of 4x4 outputs of a 7x7 kernel is the product of a matrix, y = T x, with its 10x10 inputs; T has the kernel
shifted in each row and zeros elsewhere. A CPU multiplies matrices so much faster than it runs a loop that they do not
matter. What costs is copying the inputs, of which tiles share most. Here column 4 q + p of a map is stored at [p, q].
All tiles side by side are then one product, whose right side (10 * 10, tiles) are ten rows as they are in memory, once
each row has been copied as 10 columns for every 4; tiles above each other share them. A 1x1 convolution does not care
about the order of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx

from .depthwise import TILE, tile_matrices

# Elements of the inputs of tiles, and of the widest that is computed from some rows, that are in memory at a time: what
# fits a CPU's cache is several times as fast as what does not.
_GATHERED, _WIDEST = 2**18, 2**20


@dataclass(frozen=True)
class Planes:
    """The map of an image.

    Attributes:
        values: (B, C, rows, 4, columns / 4) in float32, the only precision that reaches BLAS; rows and columns are the
            height and width rounded up to 4. What is beyond the map may be anything.
        height: of the map.
        width: of the map.
    """

    values: mx.array
    height: int
    width: int

    @staticmethod
    def of(x: mx.array) -> Planes:
        """Of a map (B, H, W, C)."""
        batch, height, width, channels = x.shape
        x = mx.pad(x.astype(mx.float32), [(0, 0), (0, -height % TILE), (0, -width % TILE), (0, 0)])
        values = x.reshape(batch, x.shape[1], -1, TILE, channels).transpose(0, 4, 1, 3, 2)
        return Planes(mx.contiguous(values), height, width)

    def whole(self) -> mx.array:
        """The map, (B, H, W, C)."""
        batch, channels, rows, _, _ = self.values.shape
        x = self.values.transpose(0, 2, 4, 3, 1).reshape(batch, rows, -1, channels)
        return x[:, : self.height, : self.width]


def depthwise(x: Planes, weight: mx.array, bias: mx.array | None = None) -> Planes:
    """The depthwise convolution of stride 1, padded so that it keeps the size.

    Args:
        weight: (C, kernel, kernel, 1), kernel odd and at most 9.
        bias: (C,)
    """
    matrices = mx.contiguous(tile_matrices(weight).swapaxes(1, 2))
    if bias is not None:
        bias = bias.astype(mx.float32)[:, None, None, None]
    rows, _, columns = x.values.shape[2:]
    step = max(1, _GATHERED // (rows * columns * (TILE + weight.shape[1] - 1)))
    parts = []
    for i in range(0, weight.shape[0], step):
        y = _convolve(replace(x, values=x.values[:, i : i + step]), matrices[i : i + step])
        y = y if bias is None else y + bias[i : i + step]
        mx.eval(y)
        parts.append(y)
    return replace(x, values=mx.concatenate(parts, axis=1))


def feed_forward(
    x: mx.array,
    skip: mx.array,
    first: tuple[mx.array, mx.array],
    second: tuple[mx.array, mx.array],
    activation: Callable[[mx.array], mx.array],
) -> mx.array:
    """skip + second(activation(first(x))), two linear layers of the channels, some rows at a time.

    Args:
        x: (B, C, rows, 4, columns / 4), as `skip` and the result.
        first: weight (D, C) and bias (D,).
        second: weight (C, D) and bias (C,).
    """
    batch, channels, rows, _, columns = x.shape
    # A bias is the weight of a further channel that is 1 everywhere: adding it would cost as much as the activation.
    first_weight = mx.concatenate([first[0], first[1][:, None]], axis=1)
    second_weight, second_bias = second[0], second[1][:, None]
    step = max(1, _WIDEST // (first_weight.shape[0] * TILE * columns))
    parts = []
    for i in range(0, rows, step):
        part, old = (v[:, :, i : i + step] for v in (x, skip))
        part = mx.concatenate([part, mx.ones_like(part[:, :1])], axis=1).reshape(batch, channels + 1, -1)
        y = mx.addmm(old.reshape(batch, channels, -1), second_weight, activation(first_weight @ part)) + second_bias
        mx.eval(y)
        parts.append(y.reshape(batch, channels, -1, TILE, columns))
    return mx.concatenate(parts, axis=2)


def _convolve(x: Planes, matrices: mx.array) -> mx.array:
    """The values of the depthwise convolution, one matrix (16, (kernel + 3)^2) for each channel."""
    batch, channels, rows, _, columns = x.values.shape
    side = math.isqrt(matrices.shape[-1])
    half = (side - TILE + 1) // 2
    values = x.values
    if (rows, TILE * columns) != (x.height, x.width):
        inside = mx.arange(TILE)[:, None] + TILE * mx.arange(columns) < x.width
        values = mx.where(inside & (mx.arange(rows) < x.height)[:, None, None], values, 0)
    # Columns -half to 4 + half - 1 of each tile: the last ones of the tile before it, its own, the first of the next.
    gathered = mx.zeros((batch, channels, rows + 2 * half, side, columns))
    gathered[:, :, half : half + rows, :half, 1:] = values[..., TILE - half :, :-1]
    gathered[:, :, half : half + rows, half : half + TILE] = values
    gathered[:, :, half : half + rows, half + TILE :, :-1] = values[..., :half, 1:]
    row = side * columns
    plane = gathered.shape[2] * row
    shape = (batch, channels, rows // TILE, side * side, columns)
    tiles = mx.as_strided(gathered, shape, (channels * plane, plane, TILE * row, columns, 1))
    return (matrices[:, None] @ tiles).reshape(batch, channels, rows, TILE, columns)
