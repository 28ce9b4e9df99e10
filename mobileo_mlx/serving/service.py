"""What all routes share: the worker, the jobs, the picture folder, the settings."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from .jobs import Job, JobStore
from .metrics import Metrics
from .pictures import Pictures
from .settings import ServerSettings
from .tasks import Drawn, Task, folder_name
from .worker import Worker

if TYPE_CHECKING:
    from ..pipeline import MobileO


class Service:
    """The state of a running server.

    Attributes:
        settings: what whoever started it decided.
        worker: runs the jobs; its model is loaded.
        jobs: all that can be asked for.
        pictures: what was drawn and uploaded.
        metrics: counts of what is done.
        started_at: in seconds since 1970.
        base_url: the server's own address, once it listens.
    """

    def __init__(self, settings: ServerSettings, worker: Worker):
        self.settings, self.worker = settings, worker
        self.metrics = Metrics()
        self.started_at = time.time()
        worker.on_turn = self.metrics.on_turn
        self.jobs = JobStore(on_end=self.metrics.on_end)
        self.pictures = Pictures(settings.pictures)
        self.base_url = ""

    def submit(self, task: Task, request: Request, *, kept: bool = False) -> Job:
        """Makes a job of a task and puts it into the queue.

        Args:
            task: what is to be done.
            request: of which client.
            kept: whether the job outlives the request.

        Raises:
            ApiError: the queue is full.
        """
        job = Job(task, client=client_of(request), kept=kept, loop=asyncio.get_running_loop())
        self.worker.submit(job)
        self.jobs.add(job)
        return job

    def url(self, request: Request, path: str) -> str:
        """An absolute address of this server, by the name that the client knows it by."""
        return f"{str(request.base_url).rstrip('/')}{path}"

    @property
    def model(self) -> MobileO:
        """Its configuration and tokenizer may be read in any thread; its networks run in the worker alone."""
        assert self.worker.model is not None
        return self.worker.model

    @property
    def model_id(self) -> str:
        """What clients call the model."""
        return str(folder_name(self.model.checkpoint.location))

    def keep(self, drawn: Drawn) -> dict[str, Any]:
        """Puts a finished picture into the picture folder, and returns what the API says of it; in any thread."""
        return self.pictures.add(drawn.data).as_json()


def client_of(request: Request) -> str:
    """Who asks, for a fair queue. Programs on one machine share an address, and are told apart by their names."""
    host = request.client.host if request.client is not None else ""
    return "\n".join([host, request.headers.get("authorization", ""), request.headers.get("user-agent", "")[:200]])
