from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator

import pytest
from mobileo_cli import signals

from mobileo_mlx.event_loop import EventLoop


def test_what_is_run_returns_or_raises() -> None:
    async def value() -> int:
        return 3

    async def error() -> None:
        raise ValueError("an error")

    assert EventLoop().run(value()) == 3
    with pytest.raises(ValueError, match="an error"):
        EventLoop().run(error())


def test_signals_in_the_middle_of_tasks_stop_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """While it runs, and while it ends."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    async def other() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            seen.append("goes on")
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGINT)
            seen.append("is cancelled")
            raise ValueError("nobody asks for it any more")

    async def main() -> None:
        await asyncio.gather(asyncio.create_task(other()), asyncio.Event().wait())

    loop = EventLoop()
    with signals.raising(), signals.noted(loop.stop, loop.stop) as numbers:
        assert loop.run(main()) is None
        seen.append("is behind it")
        signal.raise_signal(signal.SIGTERM)  # the loop is closed
    assert numbers == [signal.SIGTERM]
    assert seen == ["goes on", "is cancelled", "is behind it"]
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_a_stop_before_the_beginning() -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    loop = EventLoop()
    loop.stop()
    assert loop.run(endless()) is None


@pytest.mark.parametrize("stops", [True, False])
def test_threads_that_do_not_end_are_not_waited_for(stops: bool) -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(60)
        ended.set()

    async def main() -> None:
        working = asyncio.get_running_loop().run_in_executor(None, work)
        asyncio.create_task(stubborn(working))  # noqa: RUF006 - it is left to the end of the loop
        async for _ in items():
            if stops:
                loop.stop()
                await working
            return

    async def stubborn(working: asyncio.Future[None]) -> None:
        while not working.done():
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                continue

    closed: list[bool] = []

    async def items() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            closed.append(True)

    loop = EventLoop()
    loop.run(main())
    assert not ended.is_set()
    assert closed == [True]
    go.set()
    assert ended.wait(60)
