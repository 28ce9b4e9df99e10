"""A server that listens, in a thread of its own, and a reader of its events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.jobs import Job
from mobileo_mlx.serving.service import Service


class Live:
    """A running server.

    Attributes:
        client: of httpx, with its address.
        service: its state.
    """

    def __init__(self, service: Service, url: str, loop: asyncio.AbstractEventLoop):
        self.service, self._loop = service, loop
        self.client = httpx.Client(base_url=url, timeout=60)

    def submit(self, task: Any, client: str = "a") -> Job:
        """A job of any task."""

        async def submit() -> Job:
            job = Job(task, client=client, kept=True, loop=self._loop)
            self.service.worker.submit(job)
            self.service.jobs.add(job)
            return job

        return asyncio.run_coroutine_threadsafe(submit(), self._loop).result(60)

    def events(self, id: str, *, after: int | None = None, header: int | None = None) -> Iterator[dict[str, Any]]:
        """The events of a job as they come; closing the iterator closes the connection."""
        parameters = {} if after is None else {"after": after}
        headers = {} if header is None else {"Last-Event-ID": str(header)}
        with self.client.stream("GET", f"/v1/jobs/{id}/events", params=parameters, headers=headers) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            found: dict[str, Any] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if not line and found:
                    yield {"id": int(found["id"]), "event": found["event"], "data": json.loads(found["data"])}
                    found = {}
                elif name:
                    found[name] = value

    def ended(self, id: str) -> dict[str, Any]:
        """Waits for the end of a job."""
        (*_, last) = self.events(id)
        assert last["event"] == last["data"]["status"]
        return last["data"]


@contextmanager
def live(service: Service) -> Iterator[Live]:
    """Serves on a free port of this machine."""
    started, loops = threading.Event(), []

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            loops.append(asyncio.get_running_loop())
            started.set()

    server = Server(uvicorn.Config(make_app(service), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(60)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Live(service, f"http://127.0.0.1:{port}", loops[0])
        with running.client:
            yield running
    finally:
        server.should_exit = server.force_exit = True
        thread.join(60)
        assert not thread.is_alive()
