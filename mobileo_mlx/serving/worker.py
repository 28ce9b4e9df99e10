"""The one thread that loads and runs the model, and the queue before it.

MLX is touched in that thread alone: nobody stops it from outside, it looks at `Job.stop` between two steps or tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from .errors import ApiError, api_error
from .jobs import Job

if TYPE_CHECKING:
    from ..pipeline import MobileO

log = logging.getLogger(__name__)

_USUAL_SECONDS = 4.0  # of a turn, before any was measured
_REMEMBERED = 1000  # clients


class Worker:
    """Runs jobs, one turn at a time. The next turn is that of the client who was served the longest time ago.

    Args:
        load: loads the model; called in the thread.
        limit: jobs that wait at most.
        max_bytes: memory that the tasks of waiting jobs hold at most.

    Attributes:
        model: once it is loaded.
        memory: bytes that MLX held after the last step ("active"), keeps besides ("cache"), and held at most ("peak").
        running: the job whose turn it is.
        seconds: that a turn took, an exponential mean.
        on_turn: called after each turn, in the worker's thread, with the job and the seconds that it took.
    """

    def __init__(self, load: Callable[[], MobileO], *, limit: int, max_bytes: int):
        self._load, self._limit, self._max_bytes = load, limit, max_bytes
        self.model: MobileO | None = None
        self.memory: dict[str, int] = {}
        self.running: Job | None = None
        self.seconds = _USUAL_SECONDS
        self.on_turn: Callable[[Job, float], None] | None = None
        self._waiting: list[Job] = []
        self._last_served: dict[str, float] = {}
        self._served = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mobileo-worker", daemon=True)

    def start(self) -> MobileO:
        """Starts the thread and waits until the model is loaded.

        Raises:
            what `load` raises.
        """
        self._thread.start()
        while not self._loaded.wait(0.1):  # with a limit, so that Ctrl-C is heard
            pass
        if self._failure is not None:
            raise self._failure
        assert self.model is not None
        return self.model

    @property
    def alive(self) -> bool:
        """Whether jobs are still run."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, job: Job) -> None:
        """Puts a job into the queue.

        Raises:
            ApiError: 429, the queue is full; 503, the server is ending.
        """
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise ApiError(503, "The server is ending; try again when it is back.", code="ending")
            held = sum(waiting.task.nbytes for waiting in self._waiting) + job.task.nbytes
            if len(self._waiting) >= self._limit or (self._waiting and held > self._max_bytes):
                wait = max(1, round(self.seconds * sum(j.task.turns - j.served for j in self._waiting) / 2))
                raise ApiError(
                    429,
                    f"{len(self._waiting)} requests wait already; try again in {wait} s.",
                    code="queue_full",
                    headers={"Retry-After": str(min(wait, 60))},
                )
            self._welcome(job.client)
            self._waiting.append(job)
            self._tell_positions()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stops a job: at once if it waits, else at its next step or token."""
        with self._changed:
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.publish("cancelled")
                self._tell_positions()

    def waiting(self) -> list[Job]:
        """The jobs that wait, in the order in which they will have their next turn."""
        with self._changed:
            return list(self._order())

    def stop(self, timeout: float | None = None) -> bool:
        """Cancels all jobs and ends the thread; returns whether it has ended in so many seconds."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.stop.set()
                job.publish("cancelled")
            self._waiting.clear()
            if self.running is not None:
                self.running.stop.set()
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _order(self) -> Iterator[Job]:
        """Clients take turns, the one first who was served the longest time ago; each has its jobs done in order."""
        clients: dict[str, list[Job]] = {}
        for job in self._waiting:
            clients.setdefault(job.client, []).append(job)
        # `sorted` keeps the order of arrival among those that came during one turn.
        lines = [clients[name] for name in sorted(clients, key=lambda name: self._last_served.get(name, 0))]
        for place in range(max(map(len, lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

    def _welcome(self, client: str) -> None:
        """A new client comes before the one who was served last, and after all others: else those who give themselves
        a new name each time would keep everybody else from ever being served."""
        if client in self._last_served:
            return
        if len(self._last_served) > _REMEMBERED:
            present = {job.client for job in self._waiting} | ({self.running.client} if self.running else set())
            self._last_served = {name: turn for name, turn in self._last_served.items() if name in present}
        self._last_served[client] = self._served - 0.5

    def _tell_positions(self) -> None:
        for position, job in enumerate(self._order()):
            if not job.served:
                job.publish("position", position)

    def _run(self) -> None:
        try:
            self.model = self._load()
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._loaded.set()
        while (job := self._next()) is not None:
            begun = time.monotonic()
            self._turn(job)
            seconds = time.monotonic() - begun
            self.seconds += (seconds - self.seconds) / 8
            if self.on_turn is not None:
                self.on_turn(job, seconds)

    def _next(self) -> Job | None:
        """Waits for a job whose turn it is; None when the thread is to end."""
        with self._changed:
            self.running = None
            while not (self._waiting or self._stopping):
                self._changed.wait()
            if self._stopping:
                return None
            job = next(self._order())
            self._waiting.remove(job)
            self.running = job
            self._served += 1
            self._last_served[job.client] = self._served
            job.publish("started")
            self._tell_positions()
            return job

    def _turn(self, job: Job) -> None:
        """One turn of a job. Whatever goes wrong is that job's end and no other's."""
        assert self.model is not None
        try:
            if job.stop.is_set():
                return job.publish("cancelled")
            with closing(job.task.run(self.model, job.served)) as happenings:  # type: ignore[type-var]
                for kind, data in happenings:
                    self._measure()
                    # What is finished at the very end stays finished.
                    if job.stop.is_set() and kind not in ("completed", "picture"):
                        break
                    job.publish(kind, data)
                    if kind == "completed":
                        return None
                else:
                    job.served += 1
        except Exception as error:
            return job.publish("failed", api_error(error))
        with self._changed:
            if job.stop.is_set():
                job.publish("cancelled")
            else:
                self._waiting.insert(0, job)  # before the other jobs of its client
        return None

    def _measure(self) -> None:
        import mlx.core as mx

        self.memory = {
            "active": mx.get_active_memory(),
            "cache": mx.get_cache_memory(),
            "peak": mx.get_peak_memory(),
        }
