"""A real server on a free port of this machine, with the bundled model.

With MOBILEO_TRANSCRIPT=FILE, what clients send and are answered is added to that file.
"""

import asyncio
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("multipart")

from mobileo_mlx.serving.jobs import Job
from mobileo_mlx.serving.server import Server, listen
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.worker import Worker

from .transcript import Transcript

TRANSCRIPT = os.environ.get("MOBILEO_TRANSCRIPT")


class _Server(Server):
    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets=None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


class RunningServer:
    """A server in a thread of its own.

    Attributes:
        service: its state.
        url: where it listens.
    """

    def __init__(self, settings: ServerSettings):
        from mobileo_mlx import MobileO

        worker = Worker(lambda: MobileO.load("tiny"), limit=settings.max_queue, max_bytes=settings.max_waiting_bytes)
        worker.start()
        self.service = Service(settings, worker)
        ready = threading.Event()
        self._server = _Server(self.service, listen(settings), on_ready=lambda url: ready.set())
        if TRANSCRIPT:
            self._server.config.app = Transcript(self._server.config.app, Path(TRANSCRIPT))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert ready.wait(60)
        self.url = self.service.base_url

    def run(self, coroutine):
        """Runs something in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._server.loop).result(60)

    def wait_for(self, job: Job) -> None:
        """Waits until a job has ended."""

        async def read() -> None:
            async for _ in job.events():
                pass

        self.run(read())

    def close(self) -> None:
        self._server.end()
        self._thread.join(60)
        assert self.service.worker.stop(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server that all tests share; it holds nothing of theirs but finished pictures."""
    server = RunningServer(ServerSettings(port=0, pictures=tmp_path_factory.mktemp("pictures")))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def headed(request):
    """The transcript says what follows."""
    if TRANSCRIPT:
        with Path(TRANSCRIPT).open("a", encoding="utf-8") as file:
            file.write(f"## {request.path.stem}: {request.node.name}\n\n")
