"""Convolutions, each in the form that the backend at hand has a fast kernel for.

On a CPU the forms for inference are those of `cpu.winograd` and `cpu.dense`; training takes those that MLX has a fast
gradient for. Which form a 3x3 convolution takes, `forms` may know better than the defaults here.
"""

from __future__ import annotations

import functools

import mlx.core as mx
import mlx.nn as nn

from . import backend, forms
from .blocks import Window, Windowed
from .cpu import dense, winograd
from .derived import derived

# Bytes of the patches that are unfolded at a time.
UNFOLDED_BYTES = 2**26


class Conv2d(nn.Conv2d, Windowed):
    """`mlx.nn.Conv2d` that keeps full accuracy in half precision on Metal, and is fast on a CPU.

    Metal silently takes Winograd F(6,3) for large dense 3x3 convolutions, whose rounding error in float16 and
    bfloat16 is some 36 times that of the direct form; in float32, too, where its matrix units round to TF32. A
    convolution with `flip=True` never takes that path, so there the weights are flipped, once, and flipped back.

    Kernels are square and odd, and the map is padded by half of them.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training:
            return self.window().apply(x, self.padding[0])
        halves = self.stride[0] == 2 and self.weight.shape[1] == 3 and x.shape[1] % 2 == x.shape[2] % 2 == 0
        if backend.on_cpu() and halves:
            return self._biased(dense.strided(x, self.weight))
        return self._biased(self._convolved(x, self.padding, direct_form(x.dtype) if self._direct() else "plain"))

    def window(self) -> Window:
        (dim_out, kernel, _, dim_in), stride = self.weight.shape, self.stride[0]
        transformed = functools.cache(lambda: winograd.transform(self.weight))

        def apply(x: mx.array, zeros: int = 0) -> mx.array:
            form = self._form(x)
            if form == "winograd":
                return self._biased(winograd.convolve(x, transformed(), zeros).astype(x.dtype))
            if form == "taps":
                return self._biased(dense.convolve_to_few(x, self.weight, zeros))
            return self._biased(self._convolved(x, (zeros, self.padding[1]), form))

        return Window(kernel, stride, 1, dim_out / (dim_in * self.groups * stride**2), apply)

    def _direct(self) -> bool:
        """Whether it is one that Metal may compute by Winograd: a dense 3x3 of stride 1."""
        return self.weight.shape[1:3] == (3, 3) and self.stride[0] == self.groups == 1

    def _form(self, x: mx.array) -> str:
        default = direct_form(x.dtype) if self._direct() else "plain"
        if backend.on_cpu() and self.stride[0] == self.groups == 1:
            if winograd.pays(self.weight, x.shape[2]):
                default = "winograd"
            elif self.weight.shape[1] > 1 and self.weight.shape[0] < self.weight.shape[1] ** 2:
                default = "taps"
        return forms.chosen("conv3x3", shape_key(self.weight, x), default) if self._direct() else default

    def _convolved(self, x: mx.array, padding: tuple[int, int], form: str) -> mx.array:
        if form == "unfolded":
            return unfolded(mx.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)]), self.weight)
        if form == "flipped":
            return mx.conv_general(x, derived(_flipped, self.weight), 1, padding, flip=True)
        return mx.conv2d(x, self.weight, self.stride, padding, self.dilation, self.groups)

    def _biased(self, y: mx.array) -> mx.array:
        return y + self.bias if "bias" in self else y


class UpsampledConv2d(Conv2d):
    """A 3x3 convolution of the image made twice as large by repeating pixels; the large image is never made.

    (B, H, W, I) to (B, 2 H, 2 W, O).
    """

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__(dim_in, dim_out, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.window().apply(x, 1)

    def window(self) -> Window:
        transformed = functools.cache(lambda: winograd.transform_upsampling(self.weight))
        # A CPU does without keeping them, 100 MB of float32 in the decoder of 0.5B.
        kept = functools.partial(derived, polyphase_kernels) if not backend.on_cpu() else polyphase_kernels
        kernels = functools.cache(lambda: kept(self.weight))

        def apply(x: mx.array, zeros: int = 0) -> mx.array:
            form = "plain"
            if not self.training:
                pays = backend.on_cpu() and winograd.pays(self.weight, x.shape[2])
                form = forms.chosen("upsample", shape_key(self.weight, x), "winograd" if pays else "plain")
            if form == "winograd":
                return winograd.convolve(x, transformed(), zeros).astype(x.dtype) + self.bias
            return _upsampled(x, kernels(), zeros, unfold=form == "unfolded") + self.bias

        return Window(3, 1, 2, 4 * self.weight.shape[0] / self.weight.shape[3], apply)


def direct_form(dtype: mx.Dtype) -> str:
    """How a 3x3 convolution of stride 1 keeps the accuracy of its dtype: flipped where Metal's Winograd would not."""
    metal = backend.backend() == "metal"
    return "flipped" if metal and (dtype != mx.float32 or backend.metal_uses_tf32()) else "plain"


def shape_key(weight: mx.array, x: mx.array) -> str:
    """What a form is chosen by: channels, dtype, and the width of the map."""
    dim_out, _, _, dim_in = weight.shape
    return f"{dim_in}>{dim_out} {forms.dtype_name(x.dtype)} width {forms.about(x.shape[2])}"


def unfolded(x: mx.array, weight: mx.array) -> mx.array:
    """A convolution of stride 1 without padding as one matrix product over patches, of some rows at a time.

    Args:
        x: (B, rows + kernel - 1, columns + kernel - 1, I).
        weight: (O, kernel, kernel, I).

    Returns:
        (B, rows, columns, O).
    """
    dim_out, kernel, _, _ = weight.shape
    rows, columns = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    taps = weight.reshape(dim_out, -1).T
    step = max(1, UNFOLDED_BYTES // (x.nbytes // x.shape[1] * kernel**2))
    parts = []
    for first in range(0, rows, step):
        last = min(rows, first + step)
        shifted = [x[:, first + i : last + i, j : j + columns] for i in range(kernel) for j in range(kernel)]
        parts.append(mx.concatenate(shifted, axis=-1) @ taps)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def _flipped(weight: mx.array) -> mx.array:
    return mx.contiguous(weight[:, ::-1, ::-1])


def polyphase_kernels(weight: mx.array) -> list[mx.array]:
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


def _upsampled(x: mx.array, taps: list[mx.array], zeros: int, *, unfold: bool = False) -> mx.array:
    """The convolutions of `polyphase_kernels`, side by side: (B, H + 2 - 2 zeros, W, I) to (B, 2 H, 2 W, O)."""
    batch, height, width, _ = x.shape
    height += 2 * zeros - 2
    padded = mx.pad(x, [(0, 0), (zeros, zeros), (1, 1), (0, 0)])
    convolve = unfolded if unfold else mx.conv2d
    phases = [
        convolve(padded[:, i : i + height + 1, j : j + width + 1], taps[2 * i + j]) for i in range(2) for j in range(2)
    ]
    y = mx.stack(phases, axis=3).reshape(batch, height, width, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


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
    """A convolution's weight from PyTorch's (O, I, *kernel) to MLX's (O, *kernel, I), in that order in memory, too.

    A view would be copied by every call; the copy is made when the weight is read, which a lazy one is not yet.
    """
    return mx.contiguous(mx.moveaxis(weight, 1, -1))


def pointwise_weight(weight: mx.array) -> mx.array:
    """The weight (O, I, 1[, 1]) of a 1x1 convolution to that of the equivalent linear layer, (O, I)."""
    return weight.reshape(weight.shape[0], -1)


def channels_first(weight: mx.array) -> mx.array:
    """A convolution's weight from MLX's (O, *kernel, I) to PyTorch's (O, I, *kernel): `conv_weight` undone."""
    return mx.moveaxis(weight, -1, 1)
