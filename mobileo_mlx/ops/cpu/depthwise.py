"""Depthwise convolutions on a CPU: as matrix products of whole maps or of tiles, or as sums of shifted maps.

MLX's own is a plain loop there, some 70 times slower for each multiplication than a matrix product. So a matrix from
the inputs of a tile to its outputs, with the kernel shifted in each column and zeros elsewhere, is worth its zeros.
`channel_planes` has the same for maps in another layout.
"""

from __future__ import annotations

import functools
import itertools

import mlx.core as mx

# Outputs of a tile in each direction: of 2 to 16, that which was fastest on the maps of the vision tower.
TILE = 4


def products_pay(shape: tuple[int, ...], kernel: int) -> bool:
    """Whether a whole map as one tile is faster than MLX's loop.

    Small maps and large batches, as in training, make up for the zeros in the matrices.

    Args:
        shape: of the map, with the channels of the result.
        kernel: side of the kernel.
    """
    batch, height, width, channels = shape
    positions = height * width
    if channels * positions**2 > 2**24:
        return False  # the matrices would take more than 64 MiB
    return positions * (kernel**2 + batch) < 70 * batch * kernel**2


def rows_pay(height: int, width: int, kernel: int) -> bool:
    """Whether whole rows as tiles are faster than both, of maps of this height and width."""
    return height > 2.5 * kernel and width <= 32 * kernel


# Elements of as many rows as are computed at a time: what they are made of stays in a CPU's cache.
SHIFTED = 2**17


class Shifts:
    """A 3x3 convolution of stride 1 as a sum of shifted maps, y[p] = sum over the taps t of w[t] x[p + t].

    A third of the time of tiles. With the weights repeated for each pixel all that some rows are made of lies side by
    side in memory, so that the compiled kernel has vector instructions; what is between two rows is computed too, and
    left out.

    Args:
        weight: (C, 3, 3, 1).
        bias: (C,), or None for none.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None):
        self._weight = weight.reshape(-1, 9).T.astype(mx.float32)
        self._bias = mx.zeros_like(self._weight[:1]) if bias is None else bias.astype(mx.float32)[None]
        self._taps: dict[int, list[mx.array]] = {}

    def _repeated(self, pixels: int) -> list[mx.array]:
        """Each tap and the bias, (pixels, C)."""
        if pixels not in self._taps:
            values = mx.concatenate([self._weight, self._bias])[:, None]
            self._taps[pixels] = list(mx.contiguous(mx.broadcast_to(values, (10, pixels, values.shape[-1]))))
        return self._taps[pixels]

    def __call__(self, x: mx.array, zeros: int = 0) -> mx.array:
        """(B, rows + 2 - 2 zeros, W, C) to (B, rows, W, C), computed in float32."""
        batch, height, width, channels = x.shape
        height, row = height + 2 * zeros - 2, width + 2
        padded = mx.pad(x.astype(mx.float32), [(0, 0), (zeros, zeros), (1, 1), (0, 0)]).reshape(batch, -1, channels)
        step = max(1, min(height, SHIFTED // (row * channels)))
        *taps, start = self._repeated(step * row - 2)
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
        return mx.concatenate(parts).reshape(batch, height, width, channels).astype(x.dtype)


@mx.compile
def _plus_products(y: mx.array, *factors: mx.array) -> mx.array:
    """y + x_1 w_1 + x_2 w_2 + ...: with more arrays than three products the compiler no longer takes vectors."""
    for x, w in zip(factors[::2], factors[1::2], strict=True):
        y = y + x * w
    return y


def by_products(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """The convolution as one matrix a channel, from all positions of a map to all of the result.

    Args:
        x: (B, H, W, C).
        weight: (C, kernel, kernel, 1).

    Returns:
        (B, H / stride, W / stride, C), rounded up.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    basis = _basis(weight.shape[1], stride, rows, columns, height, width)
    y = x.reshape(batch, height * width, channels).transpose(2, 0, 1) @ _matrices(weight, basis)  # (C, B, H' W')
    # The products run in float32, the only precision that reaches BLAS.
    return y.transpose(1, 2, 0).reshape(batch, rows, columns, channels).astype(x.dtype)


def by_rows(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """As `by_products`, with matrices from the rows that a row of the result sees to that row."""
    batch, height, width, channels = x.shape
    kernel = weight.shape[1]
    rows, columns = -(-height // stride), -(-width // stride)
    above = kernel // 2
    below = (rows - 1) * stride + kernel - above - height
    planes = mx.pad(x.transpose(3, 0, 1, 2), [(0, 0), (0, 0), (above, max(below, 0)), (0, 0)])
    last = (rows - 1) * stride + 1
    seen = mx.concatenate([planes[:, :, i : i + last : stride] for i in range(kernel)], axis=-1)
    y = seen.reshape(channels, batch * rows, -1) @ _matrices(weight, _basis(kernel, stride, 1, columns, width=width))
    return y.reshape(channels, batch, rows, columns).transpose(1, 2, 3, 0).astype(x.dtype)


class Tiles:
    """The convolution as one matrix a channel, from overlapping tiles of inputs to tiles of outputs.

    Args:
        weight: (M C, kernel, kernel, 1), M outputs for each channel.
        bias: (M C,), or None for none.
        stride: of both directions.
        multiplier: M.
    """

    def __init__(self, weight: mx.array, bias: mx.array | None, stride: int, multiplier: int):
        self._kernel, self._stride, self._bias = weight.shape[1], stride, bias
        self._matrices = tile_matrices(weight, stride, multiplier)

    def __call__(self, x: mx.array, zeros: int = 0) -> mx.array:
        """(B, (rows - 1) stride + kernel - 2 zeros, W, C) to (B, rows, W / stride, M C), computed in float32."""
        batch, height, width, channels = x.shape
        kernel, stride, dtype = self._kernel, self._stride, x.dtype
        height += 2 * zeros
        rows, columns = (height - kernel) // stride + 1, -(-width // stride)
        high, wide = -(-rows // TILE), -(-columns // TILE)  # tiles
        side, half = (TILE - 1) * stride + kernel, kernel // 2
        below = max(0, (high * TILE - 1) * stride + kernel - height)
        right = max(0, (wide * TILE - 1) * stride + kernel - half - width)
        x = mx.pad(x.astype(mx.float32), [(0, 0), (zeros, zeros + below), (half, right), (0, 0)])
        _, padded, row, _ = x.shape
        row *= channels
        shape = (channels, batch, wide, side, side)
        strides = (1, padded * row, TILE * stride * channels, row, channels)
        pieces = []
        for i in range(high):  # one row of tiles after the other: what they copy stays in the CPU's cache
            tiles = mx.as_strided(x, shape, strides, i * TILE * stride * row).reshape(channels, batch * wide, side**2)
            y = (tiles @ self._matrices).reshape(channels, batch, wide, -1, TILE, TILE)
            pieces.append(y.transpose(1, 4, 2, 5, 0, 3).reshape(batch, TILE, wide * TILE, -1))
        y = mx.concatenate(pieces, axis=1)[:, :rows, :columns].astype(dtype)
        return y if self._bias is None else y + self._bias


def tile_matrices(weight: mx.array, stride: int = 1, multiplier: int = 1) -> mx.array:
    """For each input channel the matrix of a tile, (C, inputs, M * outputs) float32, M outputs for each channel.

    Args:
        weight: (M C, kernel, kernel, 1).
    """
    matrices = _matrices(weight.astype(mx.float32), _basis(weight.shape[1], stride, TILE, TILE))
    _, inputs, outputs = matrices.shape
    return matrices.reshape(-1, multiplier, inputs, outputs).swapaxes(1, 2).reshape(-1, inputs, multiplier * outputs)


def _matrices(weight: mx.array, basis: mx.array) -> mx.array:
    taps, inputs, outputs = basis.shape
    return (weight.reshape(-1, taps) @ basis.reshape(taps, -1)).reshape(-1, inputs, outputs)


@functools.lru_cache(maxsize=64)
def _basis(
    kernel: int, stride: int, rows: int, columns: int, height: int | None = None, width: int | None = None
) -> mx.array:
    """For each tap of the kernel which input of a tile it takes to which output, (k k, inputs, outputs) of 0 or 1.

    Args:
        rows, columns: outputs of the tile in each direction.
        height, width: of a map of which the tile has all in that direction: what is beyond does not count.
    """
    import numpy as np

    high, wide = (rows - 1) * stride + kernel, (columns - 1) * stride + kernel
    basis = np.zeros((kernel, kernel, high, wide, rows, columns), np.float32)
    for i, j, row, column in np.ndindex(kernel, kernel, rows, columns):
        basis[i, j, row * stride + i, column * stride + j, row, column] = 1
    half = kernel // 2
    if height is not None:
        basis = basis[:, :, half : half + height]
    if width is not None:
        basis = basis[:, :, :, half : half + width]
    return mx.array(basis.reshape(kernel**2, -1, rows * columns))
