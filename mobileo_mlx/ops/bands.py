"""Networks on whole maps or on bands of rows, so that a large map is never in memory at once.

A band is (B, rows, W, C); the bands of a map follow each other from top to bottom. Steps that see a neighbourhood take
bands and give bands, and keep the few rows that the next band needs, so that nothing is computed twice. Memory then
grows with the width of a map, not with its area, and the result is that of the whole map up to rounding.

A CPU computes bands one after the other, in its cache. A GPU takes whole maps as far as its memory goes, and is not
waited for but at the largest: work is handed over step by step, and MLX bounds how much of it may be ahead.

A suspended generator keeps its local variables alive, and a chain of them would hold many bands. So what works band by
band is a `map`, which holds nothing, and what needs a loop deletes its variables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain, starmap
from typing import Any

import mlx.core as mx

from . import backend, forms
from .blocks import Residual, Windowed, flattened, rows_ratio, sees_all, widest

Bands = Iterator[mx.array]

# Bytes of the widest map that is computed of a band. On a CPU what fits the cache is several times as fast as what does
# not, and larger arrays are mapped and cleared anew each time. On a GPU 32 MB are 128 rows of a map of 1024 pixels and
# 128 channels in half precision, enough work for each kernel. "large bands" are four times as large.
CPU_BYTES, GPU_BYTES = 2**21, 2**25

# A GPU cuts maps of more than this share of its memory. Up to ten command buffers are ahead (MAX_ACTIVE_TASKS of MLX's
# transforms.cpp), each with what one operation on such a map reads and writes; in float32 Metal's Winograd takes almost
# four maps more for its scratch, for two operations in five. On 8 GB the widest map of 512 px is whole in half
# precision, on 18 GB that of 1024 px; in float32 that of 512 px is from 32 GB on, and below the decoder stays
# under 2 GB. Never more than 1 GB: convolutions of 2e9 elements were wrong in MLX.
GPU_SHARE, WHOLE_BYTES, WINOGRAD_MAPS = 48, 2**30, 3

# Elements of a map from which on a GPU is waited for after all: four times in decoding 512 px. What is ahead would hold
# some ten of the largest maps, and starting anew takes a fraction of a millisecond where a step takes many.
WAITED_SIZE = 2**25

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
    """The bands of `run`, each computed, or on a GPU begun, before the next one is asked for.

    A step that needs the whole map gets it. So does any other while the map is no larger than a band, or than what a
    GPU takes whole; from the first one on which it is larger, steps pass bands on.
    """
    shape = map_key(x)
    flow: mx.array | Bands = x
    del x
    for step in flattened(network if isinstance(network, Sequence) else [network]):
        if sees_all(step):
            flow = step(joined(evaluated([flow] if isinstance(flow, mx.array) else flow)))
            continue
        if isinstance(flow, mx.array):
            local, rows = isinstance(step, Windowed | Residual), _rows(flow, step, shape)
            if not local or flow.shape[1] <= rows:
                if local:
                    _evaluate(flow)
                flow = step(flow)
                continue
            flow = split(flow, rows)
        flow = follow_bands(step, flow, limit=_limit(forms.chosen("map", shape, "bands")))
    return evaluated([flow] if isinstance(flow, mx.array) else flow)


def map_key(x: mx.array) -> str:
    """What the form of a network is chosen by: the map that it begins with."""
    return f"{x.shape[1]}x{x.shape[2]}x{x.shape[3]} {forms.dtype_name(x.dtype)}"


def follow_bands(step: Any, bands: Bands, *, computed: bool = False, limit: int | None = None) -> Bands:
    """The bands of what a step makes of a map. Before one that keeps rows they are computed, if they are not yet.

    Args:
        limit: bytes of a band, where the step makes them larger; by default those of the backend.
    """
    if isinstance(step, Windowed):
        window = step.window()
        bands = bands if computed else evaluated(bands)
        return map(window.apply, windows(bands, window.kernel, stride=window.stride))
    if not isinstance(step, Residual):
        return map(step, bands)
    memory: deque[mx.array] = deque()
    bands = remembered(bands if computed else evaluated(bands), memory)
    for i, inner in enumerate(step.steps):
        # A GPU gets all of them at once.
        bands = follow_bands(inner, bands, computed=i == 0 or not backend.on_cpu(), limit=limit)
    ratio = rows_ratio(step)
    bands = starmap(step.join, paired(memory, bands, ratio=ratio))
    # Where the map has become larger, so have its bands.
    return bands if ratio >= 1 else chain.from_iterable(map(partial(_cut, limit=limit), evaluated(bands)))


def _rows(x: mx.array, step: Any, shape: str) -> int:
    """Rows of a band of a map for a step; all of them where it is to be whole."""
    row = x.nbytes // x.shape[1] * widest(step)
    scratch = WINOGRAD_MAPS if x.dtype == mx.float32 and backend.backend() == "metal" else 1
    whole = not backend.on_cpu() and row * x.shape[1] * scratch <= min(WHOLE_BYTES, backend.memory() // GPU_SHARE)
    form = forms.chosen("map", shape, "whole" if whole else "bands")
    return x.shape[1] if form == "whole" else _band_rows(row, _limit(form))


def _limit(form: str) -> int:
    """Bytes of a band."""
    return (CPU_BYTES if backend.on_cpu() else GPU_BYTES) * (4 if form == "large bands" else 1)


def _band_rows(row: float, limit: int) -> int:
    """Rows of a band, of `row` bytes each."""
    return max(ROWS, int(limit // row) // ROWS * ROWS)


def _cut(x: mx.array, limit: int | None) -> Bands:
    return split(x, _band_rows(x.nbytes // x.shape[1], limit or _limit("bands")))


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
    """The same bands, computed, or on a GPU begun: what they were computed from is free before long."""

    def compute(band: mx.array) -> mx.array:
        _evaluate(band)
        return band

    return map(compute, bands)


def _evaluate(x: mx.array) -> None:
    """Waits for an array on a CPU. A GPU is waited for where maps are very large: it has no work meanwhile."""
    (mx.eval if backend.on_cpu() or x.size >= WAITED_SIZE else mx.async_eval)(x)


def _alone(x: mx.array) -> mx.array:
    """A copy of some rows. A view of them would keep all the rows in memory that it was taken from."""
    x = mx.contiguous(x)
    mx.async_eval(x)
    return x


def _padded(x: mx.array, above: int, below: int) -> mx.array:
    return mx.pad(x, [(0, 0), (above, below), (0, 0), (0, 0)])
