"""A real server on a free port of this machine, with the bundled model."""

import asyncio
import socket
import threading

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("multipart")

import uvicorn

from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.worker import Worker


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
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(make_app(self.service), log_level="error"))
        self._loop = asyncio.new_event_loop()
        listener.listen()  # whoever connects before it serves waits
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._server.serve(sockets=[listener]),)
        )
        self._thread.start()

    def run(self, coroutine):
        """Runs something in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert self.service.worker.stop(60)
        self._loop.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server that all tests share; it holds nothing of theirs but finished pictures."""
    server = RunningServer(ServerSettings(port=0, pictures=tmp_path_factory.mktemp("pictures")))
    yield server
    server.close()
