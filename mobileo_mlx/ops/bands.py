"""Rows of images that flow through a network strip by strip, so that a large image is never in memory at once.

A strip is (B, rows, W, C); strips of an image follow each other from top to bottom. What sees only a neighbourhood
takes strips and gives strips, and keeps the few rows that the next strip needs, so that nothing is computed twice.

A chain of generators waits most of the time, and each would hold what its variables last stood for. So what works strip
by strip is a `map`, which holds nothing, and what needs a loop deletes its variables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import mlx.core as mx

from . import backend

Strips = Iterator[mx.array]

# Bytes of a strip. On a CPU, what fits its cache is several times as fast as what does not: larger arrays are also
# mapped and cleared anew each time. A GPU wants fewer and larger pieces.
_CPU_BYTES, _GPU_BYTES = 2**21, 2**22


def split(x: mx.array, widest: int = 1) -> Strips:
    """An image's strips, all of the same multiple of 4 rows but the last.

    Args:
        widest: how many times as many channels as `x` the widest has of what is computed from a strip.
    """
    limit = _CPU_BYTES if backend.on_cpu() else _GPU_BYTES
    row = x[:, :1].nbytes * widest
    rows = max(4, limit // row // 4 * 4)
    for first in range(0, x.shape[1], rows):
        yield x[:, first : first + rows]


def joined(strips: Iterable[mx.array]) -> mx.array:
    """The image of strips."""
    parts = list(strips)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def windows(strips: Strips, kernel: int, *, stride: int = 1, step: int = 1) -> Strips:
    """The rows that a convolution reads, with its rows of zeros above and below the image.

    Args:
        kernel: side of the kernel, odd; the image is padded by half of it.
        stride: from an output row to the next, in input rows.
        step: every window is that of a multiple of so many output rows, but the last.

    Returns:
        For n output rows (B, (n - 1) stride + kernel, W, C).
    """
    padding = kernel // 2
    held = None
    for strip in strips:
        held = _padded(strip, padding, 0) if held is None else mx.concatenate([held, strip], axis=1)
        del strip
        rows = (held.shape[1] - kernel) // stride + 1
        rows -= rows % step
        if rows > 0:
            window = [held[:, : (rows - 1) * stride + kernel]]
            held = _alone(held[:, rows * stride :])
            yield window.pop()
    assert held is not None, "an image has rows"
    held = _padded(held, 0, padding)
    rows = (held.shape[1] - kernel) // stride + 1
    if rows > 0:
        yield held[:, : (rows - 1) * stride + kernel]


def remembered(strips: Strips, memory: deque[mx.array]) -> Strips:
    """The same strips, each of which is left in `memory` for `paired`."""

    def kept(strip: mx.array) -> mx.array:
        memory.append(strip)
        return strip

    return map(kept, strips)


def paired(
    memory: deque[mx.array], strips: Strips, *, ratio: Fraction = Fraction(1)
) -> Iterator[tuple[mx.array, mx.array]]:
    """With each strip the rows from which it was computed, which come earlier and in other pieces.

    Args:
        memory: the earlier strips, by `remembered`; they are taken out.
        ratio: earlier rows / rows.
    """

    def pair(strip: mx.array) -> tuple[mx.array, mx.array]:
        wanted, rows = [], int(strip.shape[1] * ratio)
        while rows > 0:
            early = memory.popleft()
            if early.shape[1] > rows:
                memory.appendleft(_alone(early[:, rows:]))
                early = early[:, :rows]
            wanted.append(early)
            rows -= early.shape[1]
        return joined(wanted), strip

    return map(pair, strips)


def evaluated(strips: Iterable[mx.array]) -> Strips:
    """The same strips, computed: what they were computed from is free before the next one begins."""
    return map(computed, strips)


def computed(strip: mx.array) -> mx.array:
    """The same strip, evaluated."""
    mx.eval(strip)
    return strip


def _alone(x: mx.array) -> mx.array:
    """A copy of some rows. A view of them would keep all the rows in memory that it was taken from."""
    x = mx.contiguous(x)
    mx.async_eval(x)
    return x


def _padded(x: mx.array, above: int, below: int) -> mx.array:
    return mx.pad(x, [(0, 0), (above, below), (0, 0), (0, 0)])
