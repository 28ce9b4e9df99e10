"""Time and memory that an input may take."""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MEMORY = 1_500_000_000  # bytes


class TooSlow(BaseException):
    """An input took too long."""


@contextmanager
def limited(seconds: float, memory: int = MEMORY) -> Iterator[None]:
    """Raises TooSlow after so many seconds, and MemoryError beyond so much more memory than is taken now.

    Native code is not reached by the first: it ends the process after four times as long. The second needs Linux.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"not done in {seconds:g} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(4 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak_memory() -> int:
    """The most that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
