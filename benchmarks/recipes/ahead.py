"""Batches that other processes make while a step computes."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

Make = Callable[[int, int], Any]

_DEPTH = 2  # steps ahead for each process
_make: Make | None = None  # of a process that makes batches


def ahead(make: Make, workers: int, end: int) -> Make:
    """Step and part to a batch, as `make` has it, but made before it is asked for, where there are workers.

    Args:
        make: a pure function of step and part that computes with NumPy alone: the processes are forks of this one, in
            which no GPU can be used.
        workers: processes; 0 for none, so that `make` itself is called.
        end: the step before which there are batches.
    """
    if not workers:
        return make
    gc.collect()
    gc.freeze()  # no process ends the life of an array of MLX
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_inherit, initargs=(make,))
    futures: dict[tuple[int, int], Future[Any]] = {}

    def made(step: int, part: int) -> Any:
        for each in range(step, min(end, step + 1 + _DEPTH * workers)):
            if (each, part) not in futures:
                futures[each, part] = pool.submit(_made, each, part)
        batch = futures.pop((step, part)).result()
        if step == end - 1 and not futures:
            pool.shutdown()
        return batch

    return made


def _inherit(make: Make) -> None:
    global _make
    _make = make


def _made(step: int, part: int) -> Any:
    assert _make is not None
    return _make(step, part)
