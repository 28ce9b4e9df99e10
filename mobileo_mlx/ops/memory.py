"""Limits on the memory that MLX takes besides arrays that are in use, in force while a task computes.

MLX's buffer cache keeps what was freed for later arrays of that size. On a GPU it may grow to the size that the system
recommends for everything, and `mx.get_peak_memory` does not count it: a process is as large as both together. On a CPU
MLX's own limit is 32 MB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import mlx.core as mx

from . import backend

# Bytes of the cache where networks are freed phase by phase. A step of the DiT needs the same buffers as the step
# before, some tens of megabytes in half precision. What is beyond this was left by loading or by another phase, or is
# of the decoder, which runs once.
STAGED_CACHE = 2**28

# Wired memory, which the system neither compresses nor swaps, is used on request alone (MOBILEO_WIRED=1). mlx-lm sets
# its limit for every generation, and kernel panics ("completeMemory() prepare count underflow") are reported on macOS
# 26: with two requests at once a Mac panicked within two minutes, three times of three, and in ten longer runs never
# once that limit was not set (ml-explore/mlx#3186). All of this model takes some 4 GB, which a Mac of 16 GB keeps in
# memory without it. What it gains on a small Mac has not been measured.
WIRED_VARIABLE = "MOBILEO_WIRED"


class ProcessLimit:
    """A limit of the process, in force while a task holds it. The last of several that hold it restores the old one.

    Args:
        change: sets the limit in bytes and returns that before.
    """

    def __init__(self, change: Callable[[int], int]):
        self._change, self._holders, self._before = change, 0, 0
        self._lock = threading.RLock()  # a generator that is collected here leaves its own limit, in this thread

    @contextmanager
    def held(self, limit: int, *, lower_only: bool = False) -> Iterator[None]:
        """In force inside of the context.

        Args:
            limit: in bytes. All that hold it at the same time want the same.
            lower_only: whether a lower limit that there is stays.
        """
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._before = self._change(limit)
                if lower_only and self._before < limit:
                    self._change(self._before)
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._change(self._before)


# By name when they are called, so that tests can replace MLX's functions.
_cache = ProcessLimit(lambda limit: mx.set_cache_limit(limit))
_wired = ProcessLimit(lambda limit: mx.set_wired_limit(limit))


def limits(*, staged: bool) -> AbstractContextManager[None]:
    """The limits that hold while a task computes.

    Args:
        staged: whether networks are freed when the next phase does not need them. Then the cache is small, and nothing
            is wired: no network is there long enough.
    """
    if staged and not backend.on_cpu():
        return _cache.held(STAGED_CACHE, lower_only=True)
    # Before macOS 15 MLX ignores the limit.
    wired = not staged and backend.backend() == "metal" and os.environ.get(WIRED_VARIABLE) == "1"
    return _wired_limit() if wired else nullcontext()


@contextmanager
def _wired_limit() -> Iterator[None]:
    # What is larger stays outside, array by array: MLX wires up to the limit, which it does not allow to be higher.
    limit = mx.device_info()["max_recommended_working_set_size"]
    with _wired.held(int(limit)):
        try:
            yield
        finally:
            mx.synchronize()  # nothing that a GPU still works on is unwired
