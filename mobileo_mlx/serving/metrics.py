"""Counts for Prometheus, in its text format: what was asked for, what was done, what waits, what memory is held."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from .._version import __version__

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .jobs import Job
    from .worker import Worker

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GONE = 499  # the client went before there was an answer
_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The counts of a server since it started. Every method may be called in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in _COUNTERS}

    def count(self, name: str, amount: float = 1, /, **labels: object) -> None:
        """Adds to a counter of `_COUNTERS`."""
        key = tuple((label, str(value)) for label, value in labels.items())
        with self._lock:
            self._counts[name][key] += amount  # type: ignore[assignment]

    def on_turn(self, job: Job, seconds: float) -> None:
        """One turn of a job was done."""
        self.count("turns_total", task=job.task.name)
        self.count("turn_seconds_total", seconds, task=job.task.name)

    def on_end(self, job: Job) -> None:
        """A job has ended."""
        self.count("jobs_total", task=job.task.name, outcome=job.status)
        waited = (job.started_at or job.finished_at or job.created_at) - job.created_at
        self.count("wait_seconds_total", max(0.0, waited), task=job.task.name)
        self.count("steps_total", job.steps, task=job.task.name)
        for name, number in (job.outcome.get("usage") or {}).items():
            if name in ("prompt_tokens", "completion_tokens"):
                self.count("tokens_total", number, kind=name.removesuffix("_tokens"))

    def text(self, worker: Worker, model: str) -> str:
        """All of them, and what the worker is at."""
        with self._lock:
            counts = {name: dict(counter) for name, counter in self._counts.items()}
        gauges: dict[str, Mapping[Labels, float]] = {
            "queue_length": {(): len(worker.waiting())},
            "running": {(): 0 if worker.running is None else 1},
            "turn_seconds_mean": {(): round(worker.seconds, 6)},
            "memory_bytes": {(("kind", kind),): size for kind, size in worker.memory.items()},
            "start_time_seconds": {(): round(self._started, 3)},
            "info": {(("version", __version__), ("model", model)): 1},
        }
        lines = [line for name, found in counts.items() for line in _lines(name, "counter", _COUNTERS[name], found)]
        lines += [line for name, found in gauges.items() for line in _lines(name, "gauge", _GAUGES[name], found)]
        return "\n".join(lines) + "\n"


_COUNTERS = {
    "requests_total": "Requests by route, method and status; 499 where the client left before the answer.",
    "jobs_total": "Jobs that have ended, by task and outcome.",
    "turns_total": "Turns of the model that jobs took.",
    "turn_seconds_total": "Seconds that these turns took.",
    "wait_seconds_total": "Seconds that jobs waited for their first turn.",
    "steps_total": "Denoising steps, of one batch of pictures each.",
    "tokens_total": "Tokens of finished answers and of the prompts before them.",
}
_GAUGES = {
    "queue_length": "Jobs that wait.",
    "running": "Whether a job is running.",
    "turn_seconds_mean": "Seconds that a turn takes, an exponential mean.",
    "memory_bytes": "Memory that MLX held after the last step, kept besides, and held at most.",
    "start_time_seconds": "When the server started, in seconds since 1970.",
    "info": "What runs.",
}


class RequestCounter:
    """Middleware that counts requests by the template of their route: no path that is made up becomes a label.

    Args:
        app: what answers.
        routes: of the application.
        metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._templates = {getattr(route, "endpoint", None): getattr(route, "path", "") for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = _GONE

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            status = 500 if status == _GONE else status
            raise
        finally:
            # The router has told by now which route it took.
            route = self._templates.get(scope.get("endpoint"), "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.count("requests_total", route=route, method=method, status=status)


def _lines(name: str, kind: str, words: str, values: Mapping[Labels, float]) -> Iterator[str]:
    yield f"# HELP mobileo_{name} {words}"
    yield f"# TYPE mobileo_{name} {kind}"
    for labels, value in sorted(values.items()):
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        yield f"mobileo_{name}{{{shown}}} {value}" if shown else f"mobileo_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
