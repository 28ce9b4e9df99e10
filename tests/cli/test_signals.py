from __future__ import annotations

import os
import signal

import pytest
from mobileo_cli import main, signals


def test_an_interruption_in_the_middle_of_an_import(monkeypatch: pytest.MonkeyPatch, here) -> None:
    """Python turns it into other errors, as of a class whose fields are being named."""

    def run(*arguments: object) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    monkeypatch.setattr(main, "_run", run)
    result = here("info", "tiny")
    assert (result.status, result.err) == (130, "mobileo-mlx: interrupted\n")


def test_other_errors_are_no_interruption() -> None:
    error = ValueError()
    error.__cause__ = other = KeyError()
    assert signals.cause_of(error) is None
    other.__cause__ = error  # each is the other's cause
    assert signals.cause_of(error) is None


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.Ended), (signal.SIGHUP, signals.Ended)],
)
def test_signals_that_wait(number: signal.Signals, kind: type[BaseException]) -> None:
    before = signal.getsignal(number)
    done = []

    def start() -> None:
        os.kill(os.getpid(), number)
        done.append(number)

    with pytest.raises(kind), signals.deferred():
        start()
    assert done == [number]
    assert signal.getsignal(number) is before


def test_handlers_are_as_before() -> None:
    """For programs that call main()."""
    before = [signal.getsignal(number) for number in signals.ENDING]
    assert main.main(["--version"]) == 0
    assert [signal.getsignal(number) for number in signals.ENDING] == before
