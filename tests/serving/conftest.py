"""A service with the bundled model, or with one that computes nothing."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")

from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.jobs import Job
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.worker import Worker


class Steps:
    """A task of steps that wait for `allow`, so that a test decides how far it gets; None: they do not wait."""

    name = "generate"

    def __init__(self, steps: int = 3, *, turns: int = 1, nbytes: int = 0, held: bool = False, error=None):
        self.turns, self.nbytes, self.steps, self.error = turns, nbytes, steps, error
        self.request = {"prompt": "a star"}
        self.allowed = threading.Semaphore(0) if held else None
        self.reached = threading.Semaphore(0)
        self.ran: list[tuple[int, int]] = []
        self.released = self.closed = False

    def allow(self, steps: int = 1) -> None:
        self.allowed.release(steps)

    def release(self) -> None:
        self.released = True

    def run(self, model, turn: int) -> Iterator:
        try:
            for step in range(1, self.steps + 1):
                self.reached.release()
                if self.allowed is not None:
                    self.allowed.acquire()
                self.ran.append((turn, step))
                if self.error is not None:
                    raise self.error
                yield "progress", {"step": step, "steps": self.steps}
            if turn == self.turns - 1:
                yield "completed", {"timings": {"denoise": 1.0}}
        finally:
            self.closed = True


class Loop:
    """An event loop in a thread of its own, as the server's is."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def job(self, task, *, client: str = "a", kept: bool = True) -> Job:
        async def make():
            return Job(task, client=client, kept=kept, loop=self.loop)

        return self.run(make())

    def events(self, job: Job, after: int = 0) -> list:
        async def read():
            return [event async for event in job.events(after)]

        return self.run(read())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def worker():
    worker = Worker(lambda: object(), limit=4, max_bytes=1000)
    worker.start()
    yield worker
    assert worker.stop(60)


@pytest.fixture(scope="session")
def tiny_worker():
    """The worker of a server with the bundled model."""
    from mobileo_mlx import MobileO

    worker = Worker(lambda: MobileO.load("tiny"), limit=64, max_bytes=2**30)
    worker.start()
    yield worker
    assert worker.stop(60)


@pytest.fixture
def service(tiny_worker, tmp_path):
    """A service with the bundled model and a picture folder of its own."""
    return Service(ServerSettings(pictures=tmp_path / "pictures"), tiny_worker)


@pytest.fixture
def client(service):
    """A client within this process."""
    from starlette.testclient import TestClient

    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client
