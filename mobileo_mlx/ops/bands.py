"""Blocks on bands of rows, so that a large map is never in memory at once.

A band is (B, rows, W, C); the bands of a map follow each other from top to bottom. Steps that see a neighbourhood take
bands and give bands, and keep the few rows that the next band needs, so that nothing is computed twice. Memory then
grows with the width of a map, not with its area, and the result is that of the whole map up to rounding.

A suspended generator keeps its local variables alive, and a chain of them would hold many bands. So what works band by
band is a `map`, which holds nothing, and what needs a loop deletes its variables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, starmap
from typing import Any

import mlx.core as mx

from . import backend
from .blocks import Residual, Windowed, flattened, rows_ratio, sees_all, widest

Bands = Iterator[mx.array]

# Bytes of a band. On a CPU, of the widest map that is computed of it: what fits the cache is several times as fast as
# what does not, and larger arrays are mapped and cleared anew each time. On a GPU of the band itself: each costs
# waiting for its result, so they are larger, and few maps are cut at all. Decoding 512 px in float16 in these forms, on
# a CPU's kernels, held 0.37 GB above the weights with 4 MB and 0.63 GB with 8 MB.
CPU_BYTES, GPU_BYTES = 2**21, 2**22

# Bands have a multiple of so many rows, those of a tile in the forms that convolutions take on a CPU.
ROWS = 4


def run(network: Any, x: mx.array) -> mx.array:
    """What `network(x)` gives up to rounding, for inference, in little memory.

    Args:
        network: a `blocks.Chain`, another step, or several one after the other.
        x: (B, H, W, C).
    """
    return joined(stream(network, x))


def stream(network: Any, x: mx.array) -> Bands:
    """The bands of `run`, each computed before the next one begins.

    A step that needs the whole map gets it. So does any other while the map is no larger than a band; from the first
    one on which it is larger, steps pass bands on.
    """
    flow: mx.array | Bands = x
    del x
    for step in flattened(network if isinstance(network, Sequence) else [network]):
        local = isinstance(step, Windowed | Residual)
        if sees_all(step):
            flow = step(joined(evaluated([flow] if isinstance(flow, mx.array) else flow)))
        elif isinstance(flow, mx.array) and (not local or flow.shape[1] <= _rows(flow, step)):
            if local:
                mx.eval(flow)
            flow = step(flow)
        else:
            flow = follow_bands(step, split(flow, _rows(flow, step)) if isinstance(flow, mx.array) else flow)
    return evaluated([flow] if isinstance(flow, mx.array) else flow)


def follow_bands(step: Any, bands: Bands, *, computed: bool = False) -> Bands:
    """The bands of what a step makes of a map. Before one that keeps rows they are computed, if they are not yet."""
    if isinstance(step, Windowed):
        window = step.window()
        bands = bands if computed else evaluated(bands)
        return map(window.apply, windows(bands, window.kernel, stride=window.stride))
    if not isinstance(step, Residual):
        return map(step, bands)
    memory: deque[mx.array] = deque()
    bands = remembered(bands if computed else evaluated(bands), memory)
    for i, inner in enumerate(step.steps):
        bands = follow_bands(inner, bands, computed=i == 0 or not backend.on_cpu())  # a GPU waits once for all of them
    ratio = rows_ratio(step)
    bands = starmap(step.join, paired(memory, bands, ratio=ratio))
    # Where the map has become larger, so have its bands.
    return bands if ratio >= 1 else chain.from_iterable(map(_cut, evaluated(bands)))


def _rows(x: mx.array, step: Any) -> int:
    """Rows of a band of a map for a step."""
    row = x[:, :1].nbytes
    rows = int(CPU_BYTES // (row * widest(step))) if backend.on_cpu() else GPU_BYTES // row
    return max(ROWS, rows // ROWS * ROWS)


def _cut(x: mx.array) -> Bands:
    return split(x, _rows(x, None))


def split(x: mx.array, rows: int) -> Bands:
    """A map's bands of so many rows; the last may have fewer."""
    for first in range(0, x.shape[1], rows):
        yield x[:, first : first + rows]


def joined(bands: Iterable[mx.array]) -> mx.array:
    """The map of bands."""
    parts = list(bands)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def windows(bands: Bands, kernel: int, *, stride: int = 1, step: int = ROWS) -> Bands:
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
    for band in bands:
        held = _padded(band, padding, 0) if held is None else mx.concatenate([held, band], axis=1)
        del band
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


def remembered(bands: Bands, memory: deque[mx.array]) -> Bands:
    """The same bands, each of which is left in `memory` for `paired`."""

    def kept(band: mx.array) -> mx.array:
        memory.append(band)
        return band

    return map(kept, bands)


def paired(
    memory: deque[mx.array], bands: Bands, *, ratio: Fraction = Fraction(1)
) -> Iterator[tuple[mx.array, mx.array]]:
    """With each band the rows from which it was computed, which come earlier and in other pieces.

    Args:
        memory: the earlier bands, by `remembered`; they are taken out.
        ratio: earlier rows / rows.
    """

    def pair(band: mx.array) -> tuple[mx.array, mx.array]:
        wanted, rows = [], int(band.shape[1] * ratio)
        while rows > 0:
            early = memory.popleft()
            if early.shape[1] > rows:
                memory.appendleft(_alone(early[:, rows:]))
                early = early[:, :rows]
            wanted.append(early)
            rows -= early.shape[1]
        return joined(wanted), band

    return map(pair, bands)


def evaluated(bands: Iterable[mx.array]) -> Bands:
    """The same bands, computed: what they were computed from is free before the next one begins."""

    def compute(band: mx.array) -> mx.array:
        mx.eval(band)
        return band

    return map(compute, bands)


def _alone(x: mx.array) -> mx.array:
    """A copy of some rows. A view of them would keep all the rows in memory that it was taken from."""
    x = mx.contiguous(x)
    mx.async_eval(x)
    return x


def _padded(x: mx.array, above: int, below: int) -> mx.array:
    return mx.pad(x, [(0, 0), (above, below), (0, 0), (0, 0)])
