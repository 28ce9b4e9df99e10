"""Convolutions, each in the form that the backend at hand has a fast kernel for.

What chooses by backend is here alone. A layer's `__call__` takes a whole map and is what training uses; its `stream`
takes the strips of a map (see `strips`) and is for inference.
"""

from __future__ import annotations

import functools
import itertools

import mlx.core as mx
import mlx.nn as nn

from . import winograd
from .strips import Strips, windows


class Conv2d(nn.Conv2d):
    """`mlx.nn.Conv2d` that keeps full accuracy in half precision on a GPU, and is fast on a CPU.

    Metal silently takes Winograd F(6,3) for large dense 3x3 convolutions, whose rounding error in float16 and
    bfloat16 is some 36 times that of the direct form. A convolution with `flip=True` never takes that path, so in
    half precision the weights are flipped here and flipped back there.
    """

    def __call__(self, x: mx.array) -> mx.array:
        return self._plain(x, self.padding)

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result. Only for odd kernels, padded by half of them."""
        kernel, stride = self.weight.shape[1], self.stride[0]
        phases = functools.cache(lambda: winograd.transform(self.weight))

        def convolved(window: mx.array) -> mx.array:
            if stride == 1 and _winograd_pays(self.weight.shape, window.shape[2]):
                y = winograd.convolve(window, phases()).astype(window.dtype)
            elif stride == 1 and kernel > 1 and mx.default_device() == mx.cpu and self.weight.shape[0] < kernel**2:
                y = _convolve_to_few(window, self.weight)
            else:
                return self._plain(window, (0, self.padding[1]))
            return y + self.bias if "bias" in self else y

        return map(convolved, windows(strips, kernel, stride=stride, step=winograd.TILE))

    def _plain(self, x: mx.array, padding: tuple[int, int]) -> mx.array:
        if x.dtype == mx.float32 or self.weight.shape[1:3] != (3, 3) or mx.default_device() == mx.cpu:
            y = mx.conv2d(x, self.weight, self.stride, padding, self.dilation, self.groups)
        else:
            weight = self.weight[:, ::-1, ::-1]
            y = mx.conv_general(x, weight, self.stride, padding, groups=self.groups, flip=True)
        return y + self.bias if "bias" in self else y


class UpsampledConv2d(Conv2d):
    """A 3x3 convolution of the image made twice as large by repeating pixels; the large image is never made.

    (B, H, W, I) to (B, 2 H, 2 W, O).
    """

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__(dim_in, dim_out, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        window = mx.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)])
        return _upsampled(window, _phase_taps(self.weight)) + self.bias

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result, each of twice as many rows."""
        # Made once, for all strips, in the form that is needed.
        transformed = functools.cache(lambda: winograd.transform_upsampling(self.weight))
        taps = functools.cache(lambda: _phase_taps(self.weight))

        def convolved(window: mx.array) -> mx.array:
            if _winograd_pays(self.weight.shape, window.shape[2]):
                return winograd.convolve(window, transformed()).astype(window.dtype) + self.bias
            return _upsampled(window, taps()) + self.bias

        return map(convolved, windows(strips, 3, step=winograd.TILE))


def _phase_taps(weight: mx.array) -> list[mx.array]:
    """For each of the four pixels that a small one becomes, by rows, the taps (O, 2, 2, I) of its convolution.

    Three rows of repeated pixels are two rows of the small image, the nearer one twice; so too for columns. So each of
    the four is a 2x2 convolution of the small image: 16 multiplications instead of 36.

    Args:
        weight: (O, 3, 3, I).
    """
    # Summed in float32, so that in half precision the taps are rounded once.
    w = weight.astype(mx.float32)
    rows = ((w[:, :1], w[:, 1:2] + w[:, 2:]), (w[:, :1] + w[:, 1:2], w[:, 2:]))
    taps = []
    for pair in rows:
        v = mx.concatenate(list(pair), axis=1)  # (O, 2, 3, I)
        columns = ((v[:, :, :1], v[:, :, 1:2] + v[:, :, 2:]), (v[:, :, :1] + v[:, :, 1:2], v[:, :, 2:]))
        taps += [mx.concatenate(list(column), axis=2).astype(weight.dtype) for column in columns]
    return taps


def _upsampled(window: mx.array, taps: list[mx.array]) -> mx.array:
    """The convolutions of `_phase_taps`, side by side: (B, H + 2, W, I) to (B, 2 H, 2 W, O)."""
    batch, height, width, _ = window.shape
    height -= 2
    padded = mx.pad(window, [(0, 0), (0, 0), (1, 1), (0, 0)])
    phases = [
        mx.conv2d(padded[:, i : i + height + 1, j : j + width + 1], taps[2 * i + j]) for i in range(2) for j in range(2)
    ]
    y = mx.stack(phases, axis=3).reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def _convolve_to_few(window: mx.array, weight: mx.array) -> mx.array:
    """A convolution to a few channels: every tap's product first, then their sum.

    A CPU's convolution would first copy the many input channels for each tap.

    Args:
        window: (B, rows + kernel - 1, W, I).
        weight: (O, kernel, kernel, I).

    Returns:
        (B, rows, W, O).
    """
    dim_out, kernel, _, dim_in = weight.shape
    batch, height, width, _ = window.shape
    products = window @ weight.transpose(3, 1, 2, 0).reshape(dim_in, -1)
    products = products.reshape(batch, height, width, kernel, kernel, dim_out)
    products = mx.pad(products, [(0, 0), (0, 0), (kernel // 2, kernel // 2), (0, 0), (0, 0), (0, 0)])
    rows = height - kernel + 1
    y = mx.zeros((batch, rows, width, dim_out), window.dtype)
    for i in range(kernel):
        for j in range(kernel):
            y = y + products[:, i : i + rows, j : j + width, i, j]
    return y


def _winograd_pays(weight: tuple[int, ...], width: int) -> bool:
    """Whether our float32 Winograd is faster: on a CPU, where a weight meets enough pixels to be worth transforming.

    A GPU has no need of it: Metal takes its own in float32, and in half precision none may be taken.
    """
    dim_out, height, _, dim_in = weight
    return mx.default_device() == mx.cpu and height == 3 and min(dim_out, dim_in) >= 32 and width >= 64


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
        if mx.default_device() == mx.cpu:
            return list(mx.split(self(x), count, axis=-1))
        whole = mx.split(self._convolved(x, self.weight, None), count, axis=-1)
        return [part + bias for part, bias in zip(whole, mx.split(self.bias, count), strict=True)]

    def _convolved(self, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
        kernel = weight.shape[1]
        if not self.training and (kernel, self.stride, self.multiplier) == (3, 1, 1) and _shifts_pay(x.shape):
            return _depthwise_by_shifts(x, weight, bias)
        if mx.default_device() == mx.cpu and _products_pay((*x.shape[:3], weight.shape[0]), kernel):
            y = _depthwise_by_products(self._repeated(x), weight, self.stride)
        elif mx.default_device() == mx.cpu and not self.training:
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
        matrices = self._tile_matrices(weight) if mx.default_device() == mx.cpu else None

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
    return mx.default_device() == mx.cpu and height * width * (9 + batch) > 100 * batch


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
        # One product a group with all positions as rows. A product for each position would be millions of tiny ones,
        # whose offsets MLX's CPU backend (0.32) counts in 32 bits: at 2048 pixels it reads outside of the weights.
        y = x.reshape(-1, groups, width).swapaxes(0, 1) @ self.weight.swapaxes(-1, -2)
        return y.swapaxes(0, 1).reshape(x.shape)


def conv_weight(weight: mx.array) -> mx.array:
    """A convolution's weight from PyTorch's (O, I, *kernel) to MLX's (O, *kernel, I)."""
    return mx.moveaxis(weight, 1, -1)


def pointwise_weight(weight: mx.array) -> mx.array:
    """The weight (O, I, 1[, 1]) of a 1x1 convolution to that of the equivalent linear layer, (O, I)."""
    return weight.reshape(weight.shape[0], -1)
