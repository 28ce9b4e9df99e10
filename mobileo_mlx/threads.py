"""Tasks of one model in several threads: they take turns, and a stream may be begun in one thread and go on in another.

MLX's streams of operations belong to threads. An array that was made in one thread and not evaluated there can't be
evaluated in another one: MLX raises "There is no Stream(cpu, 0) in current thread", or the process ends with a
segmentation fault. What has been evaluated, or queued by `mx.async_eval`, can be used anywhere. So all that two threads
may see, and all that lives in a generator while it is suspended, is evaluated or queued before.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TypeVar

Item = TypeVar("Item")

_EXECUTING = "generator already executing"  # Python's, where a generator runs already, in this thread or another one


def in_turns(
    lock: threading.RLock, task: Generator[Item, None, None], limits: AbstractContextManager[None]
) -> Generator[Item, None, None]:
    """The items of a task, each computed while the lock is held, and suspended without it.

    A caller that does not read on stops nobody else, and the next item may be asked for in another thread. Closing the
    generator closes the task. That takes no lock: it computes nothing, and the garbage collector may do it anywhere.
    So whoever else closes the task takes `close`.

    Args:
        lock: of all that must not compute at the same time.
        task: where it is suspended, all its arrays are evaluated or queued.
        limits: entered before the first item and left after the last one, or when the generator is closed.
    """
    try:
        with limits:
            while True:
                with lock:
                    _remember_thread()
                    try:
                        item = next(task)
                    except StopIteration:
                        return
                yield item
                del item  # nothing of one step is in memory while the next one is computed
    finally:
        try:
            task.close()
        except ValueError as error:
            if str(error) != _EXECUTING:  # in which case somebody else is closing it
                raise


def close(task: Generator[Item, None, None]) -> None:
    """Closes a task of `in_turns` from outside, and waits where another thread is just closing it.

    Raises:
        ValueError: it is being computed, which in another thread it can't be while the lock is held.
    """
    limit = time.monotonic() + 1
    while True:
        try:
            return task.close()
        except ValueError as error:
            if str(error) != _EXECUTING or time.monotonic() > limit:
                raise
        time.sleep(0.001)


# The ids, as the system knows them, of threads in which tasks have computed, but for the main thread.
_seen: set[int] = set()


def _remember_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        _seen.add(threading.get_native_id())


@atexit.register
def _await_ended_threads() -> None:
    """Waits until threads that have ended are gone.

    MLX keeps a random key, a Python object, for each thread in which a network was built, and takes Python's lock to
    free it when the system's thread ends: up to Python 3.12 a moment after `Thread.join` has returned. Where the
    interpreter has begun to end by then, glibc unwinds the thread through a destructor, and the process is aborted
    ("terminate called without an active exception"). Seen on Linux alone.
    """
    ended = _seen - {thread.native_id for thread in threading.enumerate()}
    limit = time.monotonic() + 1
    while any(os.path.exists(f"/proc/self/task/{thread}") for thread in ended) and time.monotonic() < limit:
        time.sleep(0.001)
