"""Signals that ask the command to end: answered as Ctrl-C is, so that nothing unfinished stays behind."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

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


_ending = False  # after the first signal of `ENDING`


@contextmanager
def raising() -> Iterator[None]:
    """Lets the signals of `ENDING` raise `Ended`, the first of them alone; those that are ignored (nohup) stay so."""
    taken = [number for number in ENDING if _is_main_thread() and signal.getsignal(number) == signal.SIG_DFL]
    for each in taken:
        signal.signal(each, _end)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    global _ending
    if not _ending:  # a terminal that closes, or a shutdown, may say so several times
        _ending = True
        raise Ended(number)


def repeat_what_was_lost() -> None:
    """Lets an interruption that Python could not raise come again.

    Where it comes in a callback, as there are many during imports, it is reported and ignored. For
    `sys.unraisablehook`, in the process of the command alone.
    """

    def hook(lost: Any) -> None:
        global _ending
        if isinstance(lost.exc_value, KeyboardInterrupt):
            _ending = False
            number = getattr(lost.exc_value, "number", signal.SIGINT)
            left = threading.Event()
            threading.Thread(target=_again, args=(number, left), daemon=True).start()
            left.set()
        else:
            sys.__unraisablehook__(lost)

    sys.unraisablehook = hook


def _again(number: int, left: threading.Event) -> None:
    """Interrupts the main thread a moment after it has left a callback."""
    left.wait()
    time.sleep(0.05)
    _thread.interrupt_main(signal.Signals(number))


def cause_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that was turned into another error: in the middle of an import Python does so."""
    seen: list[BaseException] = []  # errors can be each other's cause
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def deferred() -> Iterator[None]:
    """Raises an interruption that comes meanwhile at the end: code in C may not stand it, as while a library starts."""
    with noted(lambda: None) as numbers:
        yield
    if numbers:
        raise interruption(numbers[0])


@contextmanager
def noted(say: Callable[[], None], again: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """Lets the first Ctrl-C, or signal of `ENDING`, only be noted; the second one raises what `interruption` gives.

    Args:
        say: called with the first one.
        again: called with each later one, which then raises nothing.

    Yields:
        a list that holds the number of the first signal once there was one.
    """
    numbers: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not numbers:
            numbers.append(number)
            with suppress(RuntimeError):  # the signal came in the middle of a write to the same stream
                say()
        elif again is not None:
            again()
        else:
            raise interruption(number)

    heard = (signal.SIGINT, *ENDING) if _is_main_thread() else ()
    taken = [number for number in heard if signal.getsignal(number) != signal.SIG_IGN]
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
