"""An event loop of asyncio that signals can end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

Value = TypeVar("Value")

_LAST_SECONDS = 1.0  # for tasks that were cancelled, and for generators
_LOOK = 1.0  # seconds: a signal that comes just before the loop begins to wait is seen only when it awakes


class EventLoop:
    """What `asyncio.run` does, until it is asked to stop; for one run.

    An exception that a signal's handler raises in a running loop appears in whatever is computed there at that moment:
    the task groups of a library keep it to themselves, or it is reported as the bug of a task. So handlers call `stop`
    instead, and raise behind `run`. And `asyncio.run` waits for all tasks, and for threads, however long they take.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = self._loop.create_future()

    def run(self, main: Coroutine[Any, Any, Value]) -> Value | None:
        """Runs until this is done; then, or when `stop` was called, cancels what is left, and waits a moment for it.

        Returns:
            what `main` returns; None where it was stopped before.

        Raises:
            what `main` raises.
        """
        asyncio.set_event_loop(self._loop)
        try:
            task = self._loop.create_task(main)
            while not (task.done() or self._stopped.done()):
                either = {task, self._stopped}
                self._loop.run_until_complete(asyncio.wait(either, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED))
            if task.done():
                return task.result()
            self._loop.set_exception_handler(lambda loop, context: None)  # what is given up now has not failed
            return None
        finally:
            self._loop.run_until_complete(self._end())
            asyncio.set_event_loop(None)
            self._loop.close()

    def stop(self) -> None:
        """Ends `run`; from a signal's handler, or another thread, at any time, and any number of times."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._stopped.cancel)

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LAST_SECONDS)
        closing = asyncio.ensure_future(self._loop.shutdown_asyncgens())
        await asyncio.wait({closing}, timeout=_LAST_SECONDS)
