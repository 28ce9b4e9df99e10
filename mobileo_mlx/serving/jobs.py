"""Jobs: tasks that wait, run and end, and what happened to each as events that any number of readers follow."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .errors import ApiError
from .tasks import Drawn, Task

Status = Literal["queued", "generating", "completed", "failed", "cancelled"]

FINAL = ("completed", "failed", "cancelled")
_KEPT_ONCE = ("status", "progress")  # of these only the newest event tells something


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        number: 1, 2, ... in a job.
        kind: "status", "progress", "preview", "picture", "text", or one of `FINAL`, which is the last.
        data: what `Task.run` yielded, or the job's description.
    """

    number: int
    kind: str
    data: Any


class Job:
    """A task on its way. Its state changes in the event loop's thread alone; `publish` may be called in any.

    Attributes:
        id: for its address.
        task: what is to be done.
        client: who asked, for a fair queue.
        kept: whether it outlives the request that made it.
        stop: set to end it; the worker looks at it between two steps or tokens.
        served: how many of the task's turns are done; the worker's.
        steps: of denoising that were done in all turns.
    """

    def __init__(self, task: Task, *, client: str, kept: bool, loop: asyncio.AbstractEventLoop):
        self.id = f"job_{secrets.token_hex(16)}"
        self.task, self.client, self.kept = task, client, kept
        self.stop = threading.Event()
        self.served = 0
        self.status: Status = "queued"
        self.position: int | None = None
        self.progress: dict[str, Any] | None = None
        self.steps = 0
        self.drawn: list[Drawn] = []
        self.text = ""
        self.outcome: dict[str, Any] = {}  # what the task says at its end: usage, timings, peak_memory, finish_reason
        self.error: ApiError | None = None
        self.created_at = time.time()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self._loop = loop
        self._count = 0
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self.on_end: Callable[[Job], None] | None = None

    def publish(self, kind: str, data: Any = None) -> None:
        """Something happened. From any thread; nothing happens any more where the event loop has ended."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._apply, kind, data)

    def _apply(self, kind: str, data: Any) -> None:
        if self.finished:
            return
        if kind == "progress":
            self.progress = data
            self.steps += 1
        elif kind == "picture":
            if self.kept and data.record is not None:  # whose bytes are with the server's pictures
                data = replace(data, data=b"")
            self.drawn.append(data)
        elif kind == "text":
            self.text += data["delta"]
        elif kind == "position":
            if self.position == data:
                return
            self.position, kind = data, "status"
        elif kind == "started":
            if self.status == "generating":
                return
            self.status, self.position, self.started_at, kind = "generating", None, time.time(), "status"
        elif kind in FINAL:
            self.status, self.position, self.finished_at = kind, None, time.time()  # type: ignore[assignment]
            if kind == "completed":
                self.outcome = data or {}
            if kind == "failed":
                self.error = data
        self._add(kind, self.describe() if kind == "status" or kind in FINAL else data)
        if self.finished:
            if self.kept:  # the one reader of another job may be slower than the drawing
                self._events = [event for event in self._events if event.kind != "preview"]
            self.task.release()
            if self.on_end is not None:
                self.on_end(self)

    def _add(self, kind: str, data: Any) -> None:
        if kind in _KEPT_ONCE:
            self._events = [event for event in self._events if event.kind != kind]
        self._count += 1
        self._events.append(Event(self._count, kind, data))
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in FINAL

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """All events with a number above `after` that still tell something, and those to come; the last is final."""
        while True:
            changed = self._changed
            for event in [event for event in self._events if event.number > after]:
                after = event.number
                yield event
                if event.kind in FINAL:
                    return
            if self.finished and changed is self._changed:
                return  # the last event had been read before
            await changed.wait()

    async def ended(self) -> None:
        """Waits for the end.

        Raises:
            ApiError: it failed, or was cancelled.
        """
        async for _ in self.events():
            pass
        if self.error is not None:
            raise self.error
        if self.status == "cancelled":
            raise ApiError(503, "The task was cancelled.", code="cancelled")

    def describe(self) -> dict[str, Any]:
        """The job as JSON can hold it, without the bytes of pictures."""
        return {
            "id": self.id,
            "object": "job",
            "task": self.task.name,
            "status": self.status,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "queue_position": self.position,
            "request": dict(self.task.request),
            "progress": self.progress,
            "pictures": [drawn.record for drawn in self.drawn if drawn.record is not None],
            "text": self.text,
            "error": None if self.error is None else self.error.fields,
            **_outcome(self.outcome),
        }


def _outcome(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {name: outcome.get(name) for name in ("usage", "finish_reason", "timings", "peak_memory")}


class JobStore:
    """All jobs that can be asked for: those that have not ended, and the last `limit` of the kept ones.

    Args:
        limit: see there.
        on_end: called with each job that has ended.
    """

    def __init__(self, limit: int = 200, *, on_end: Callable[[Job], None] | None = None):
        self._limit, self._on_end = limit, on_end
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def add(self, job: Job) -> None:
        """Makes it known until it ends, or longer if it is kept."""
        self._jobs[job.id] = job
        job.on_end = self._ended

    def _ended(self, job: Job) -> None:
        if self._on_end is not None:
            self._on_end(job)
        if not job.kept:
            self._jobs.pop(job.id, None)
        finished = [other.id for other in self._jobs.values() if other.finished]
        for name in finished[: max(0, len(finished) - self._limit)]:
            del self._jobs[name]

    def get(self, name: str) -> Job | None:
        """The job of an id."""
        return self._jobs.get(name)

    def forget(self, name: str) -> None:
        """Removes one."""
        self._jobs.pop(name, None)

    def newest(self, *, kept: bool = True) -> list[Job]:
        """All, or those that are kept, the newest first."""
        return [job for job in reversed(self._jobs.values()) if job.kept or not kept]
