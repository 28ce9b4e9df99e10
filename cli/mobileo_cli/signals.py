"""Signals that ask the command to end: answered as Ctrl-C is, so that nothing unfinished stays behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)  # `kill`, `timeout` and a shutdown; a terminal that was closed


class Ended(KeyboardInterrupt):
    """Raised by a signal of `ENDING`: what cleans up after Ctrl-C does so here.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def interruption(number: int) -> KeyboardInterrupt:
    """What a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


@contextmanager
def raising() -> Iterator[None]:
    """Lets the signals of `ENDING` raise `Ended`, the first of them alone; those that are ignored (nohup) stay so."""
    taken = [number for number in ENDING if _is_main_thread() and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in taken:  # a terminal that closes may say so several times
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for each in taken:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def noted(say: Callable[[], None]) -> Iterator[list[int]]:
    """Lets the first Ctrl-C, or signal of `ENDING`, only be noted; the second one raises what `interruption` gives.

    Args:
        say: called with the first one.

    Yields:
        a list that holds the signal's number once there was one.
    """
    numbers: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if numbers:
            raise interruption(number)
        numbers.append(number)
        with suppress(RuntimeError):  # the signal came in the middle of a write to the same stream
            say()

    taken = [number for number in (signal.SIGINT, *ENDING) if signal.getsignal(number) != signal.SIG_IGN]
    before = [signal.signal(number, note) for number in taken]
    try:
        yield numbers
    finally:
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def end_at_once() -> None:
    """From now on Ctrl-C ends the process there and then: nothing is left to be cleaned up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
