"""Clients that go away, send half of something, or do not read: over real sockets, against the real server.

What a request runs is a task of steps that the test lets happen. A task whose client has gone is cancelled, the server
goes on answering, and no connection, task of the event loop or job stays behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mobileo_mlx.serving import connections, jobs_api
from mobileo_mlx.serving.jobs import Job
from mobileo_mlx.serving.server import Server, listen
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.sse import EventStream, run_to_end, sent_event
from mobileo_mlx.serving.worker import Worker

from .conftest import Steps

HEAD = "Host: localhost\r\nContent-Type: application/json\r\n"


class Endless(Steps):
    """A task that goes on until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()

    def run(self, model: Any, turn: int) -> Iterator[Any]:
        try:
            while True:
                self.going.set()
                time.sleep(0.001)  # a step
                yield "progress", {"step": 1, "steps": 2}
        finally:
            self.closed = True


class Running:
    """A server in a thread of its own, whose routes run endless tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Job] = []
        monkeypatch.setattr(jobs_api, "routes", self.routes)
        settings = ServerSettings(port=0, max_body=100_000)
        self.worker = Worker(lambda: object(), limit=1000, max_bytes=10**9)  # type: ignore[arg-type,return-value]
        self.worker.start()
        self.service = Service(settings, self.worker)
        sockets = listen(settings)
        self.port = sockets[0].getsockname()[1]
        ready = threading.Event()
        self.server = Server(self.service, sockets, on_ready=lambda url: ready.set())
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        assert ready.wait(60)

    def routes(self, service: Service) -> list[Route]:
        async def run(request: Request) -> Response:
            await request.body()
            job = self.submit(request)
            await run_to_end(service, job, request)
            return JSONResponse(job.describe())

        async def stream(request: Request) -> Any:
            await request.body()
            job = self.submit(request)

            async def events() -> Any:
                async for event in job.events():
                    yield sent_event(event.kind)

            return EventStream(events(), on_gone=lambda: service.worker.cancel(job))

        async def flood(request: Request) -> Any:
            async def events() -> Any:
                while True:
                    yield sent_event("x" * 65536)

            return EventStream(events())

        async def echo(request: Request) -> Response:
            return PlainTextResponse(await request.body())

        async def ok(request: Request) -> Response:
            return PlainTextResponse("ok")

        return [
            Route("/run", run, methods=["POST"]),
            Route("/stream", stream, methods=["POST"]),
            Route("/flood", flood),
            Route("/echo", echo, methods=["POST"]),
            Route("/ok", ok),
        ]

    def submit(self, request: Request) -> Job:
        job = self.service.submit(Endless(), request)  # type: ignore[arg-type]
        self.jobs.append(job)
        return job

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def send(self, text: str | bytes) -> socket.socket:
        client = self.connect()
        client.sendall(text if isinstance(text, bytes) else text.encode())
        return client

    def is_healthy(self) -> bool:
        with closing(self.send("GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")) as client:
            return read_all(client).endswith(b"\r\n\r\nok")

    def is_empty(self) -> bool:
        """Whether nothing is left of any client."""
        state = self.server.server_state
        return not (state.connections or state.tasks or self.worker.waiting() or self.worker.running)

    def stop(self) -> None:
        self.server.end()
        self.thread.join(60)
        assert not self.thread.is_alive()


def wait_until(condition: Callable[[], Any]) -> None:
    """Polls; a test that fails does so after a minute."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def read_all(client: socket.socket) -> bytes:
    """Until the server closes."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def post(path: str, body: str = "{}") -> str:
    return f"POST {path} HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n{body}"


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Running]:
    """Checks at the end that the server has stayed healthy, holds nothing, and has logged no bug."""
    caplog.set_level(logging.ERROR)
    running = Running(monkeypatch)
    try:
        yield running
        assert running.is_healthy()
        wait_until(running.is_empty)
    finally:
        running.stop()
    assert running.worker.stop(60)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("path", ["/run", "/stream"])
def test_the_task_of_a_client_that_goes_is_cancelled(running: Running, path: str):
    client = running.send(post(path))
    wait_until(lambda: running.jobs and running.jobs[0].status == "generating")
    client.close()
    wait_until(lambda: running.jobs[0].status == "cancelled")
    assert running.jobs[0].task.closed  # type: ignore[attr-defined]


def test_a_task_that_waits_is_cancelled_too(running: Running):
    first = running.send(post("/run"))
    wait_until(lambda: running.jobs)
    second = running.send(post("/stream"))
    wait_until(lambda: len(running.jobs) == 2)
    second.close()
    wait_until(lambda: running.jobs[1].status == "cancelled")
    assert running.jobs[0].status == "generating"
    first.close()


def test_a_client_that_resets_the_connection(running: Running):
    client = running.send(post("/stream"))
    assert client.recv(10)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.close()
    wait_until(lambda: running.jobs[0].status == "cancelled")


def test_clients_that_go_at_any_byte(running: Running):
    """At each byte of a request, and at some while it is answered."""
    text = post("/stream", '{"prompt": "a star"}').encode()
    for end in range(0, len(text), 3):
        running.send(text[:end]).close()
    chance = random.Random(7)
    for _ in range(40):
        client = running.send(text)
        if chance.random() < 0.7:
            client.recv(chance.randrange(1, 300))
        client.close()
    wait_until(lambda: all(job.finished for job in running.jobs))
    assert {job.status for job in running.jobs} <= {"cancelled"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET /ok",
        b"GET /ok HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /ok HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000,
        b"GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\nGET /o",
    ],
)
def test_half_of_the_headers_is_not_waited_for_for_ever(running: Running, monkeypatch: pytest.MonkeyPatch, text: bytes):
    with closing(running.send(text)) as client:
        if b"\r\n\r\n" in text:
            answer = b""
            while not answer.endswith(b"ok"):
                answer += client.recv(1000)
        monkeypatch.setattr(connections, "OWING_SECONDS", 0.0)
        assert read_all(client) == b""
    monkeypatch.undo()


def test_headers_that_drip_are_not_waited_for_either(running: Running, monkeypatch: pytest.MonkeyPatch):
    with closing(running.send(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nX: ")) as client:
        state = running.server.server_state
        wait_until(lambda: any(one.owing_since is not None for one in list(state.connections)))
        (begun,) = [one.owing_since for one in list(state.connections)]
        for _ in range(5):
            client.sendall(b"x")
        assert [one.owing_since for one in list(state.connections)] == [begun]  # more of it gives no more time
        monkeypatch.setattr(connections, "OWING_SECONDS", 0.0)
        assert read_all(client) == b""
    monkeypatch.undo()


def test_a_body_that_nobody_wanted_has_an_end(running: Running, monkeypatch: pytest.MonkeyPatch):
    """The answer comes at once, what the client still sends is passed over, and then the connection is closed."""
    with closing(running.send(f"POST /echo HTTP/1.1\r\n{HEAD}Content-Length: 500000\r\n\r\nxxx")) as client:
        answer = client.recv(1)
        monkeypatch.setattr(connections, "OWING_SECONDS", 0.0)
        answer += read_all(client)
    monkeypatch.undo()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too_large" in answer


def test_a_connection_can_be_used_after_a_refusal(running: Running):
    """A client that sends its whole body before it reads gets its answer, and the next one, too."""
    refused = f"POST /echo HTTP/1.1\r\n{HEAD}Content-Length: 150000\r\n\r\n" + "x" * 150_000
    last = "GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with closing(running.send(refused + last)) as client:
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"\r\n\r\nok")


def test_pipelined_requests_are_answered_in_order(running: Running):
    texts = [post("/echo", f"{i}") for i in range(20)]
    last = "GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with closing(running.send("".join([*texts, last]))) as client:
        answers = read_all(client).split(b"HTTP/1.1 200 ")[1:]
    assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers] == [*(b"%d" % i for i in range(20)), b"ok"]


def test_a_second_request_behind_one_that_runs(running: Running):
    """It waits; and when the client goes, both have an end."""
    client = running.send(post("/run") + post("/run"))
    wait_until(lambda: running.jobs and running.jobs[0].status == "generating")
    assert len(running.jobs) == 1
    client.close()
    wait_until(lambda: running.jobs[0].status == "cancelled")


def test_a_client_that_shuts_its_side_has_gone(running: Running):
    """A socket that is closed looks the same from here."""
    with closing(running.send(post("/run"))) as client:
        wait_until(lambda: running.jobs)
        client.shutdown(socket.SHUT_WR)
        read_all(client)
    wait_until(lambda: running.jobs[0].status == "cancelled")


def test_a_client_that_does_not_read(running: Running, monkeypatch: pytest.MonkeyPatch):
    client = running.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
    state = running.server.server_state
    wait_until(lambda: any(one.stalled_since is not None for one in list(state.connections)))
    assert running.is_healthy()
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.0)
    wait_until(lambda: not state.connections)
    monkeypatch.undo()
    client.close()


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /ok HTTP/3\r\n\r\n",
        b"\r\n\r\n\r\nhello\r\n\r\n",
        b"GET /ok HTTP/1.1\r\n\r\n",  # no Host
        b"GET /ok HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
    ],
)
def test_what_is_no_request(running: Running, text: bytes):
    with closing(running.send(text)) as client:
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"501")
    assert json.JSONDecoder().raw_decode(body.decode())[0]["error"]["message"]


def test_headers_without_an_end(running: Running):
    refused = False
    with closing(running.send(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nX: ")) as client:
        while not refused:
            try:
                client.sendall(b"x" * 65536)
            except (BrokenPipeError, ConnectionResetError):
                refused = True


@pytest.mark.parametrize("path", ["/echo", "/run"])
def test_a_body_that_turns_into_nonsense(running: Running, path: str):
    """Its reader hears that nothing follows, and its client that it is no body."""
    head = f"POST {path} HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    with closing(running.send(head)) as client:
        client.sendall(b"nonsense\r\n")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not sent as its headers say" in answer
    assert running.jobs == []


def test_nonsense_behind_a_request_that_runs(running: Running):
    with closing(running.send(post("/stream"))) as client:
        assert client.recv(10)
        client.sendall(b"\x00nonsense\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
    wait_until(lambda: running.jobs[0].status == "cancelled")


def test_nonsense_behind_a_refusal(running: Running):
    """The answer was sent; what follows is no chunk of the body that was announced."""
    head = "POST /echo HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(running.send(head)) as client:
        client.recv(10)
        client.sendall(b"nonsense\r\n")
        read_all(client)


def test_a_client_that_waits_to_be_asked_for_its_body(running: Running):
    head = f"POST /echo HTTP/1.1\r\n{HEAD}Expect: 100-continue\r\nConnection: close\r\nContent-Length: 3\r\n\r\n"
    with closing(running.send(head)) as client:
        assert client.recv(25).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"abc")
        assert read_all(client).endswith(b"abc")
    with closing(running.send(head.replace("Content-Length: 3", "Content-Length: 500000"))) as client:
        assert client.recv(25).startswith(b"HTTP/1.1 413 ")


def test_upgrades_are_passed_over(running: Running):
    for protocol in ("websocket", "h2c"):
        text = f"GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\n\r\n"
        with closing(running.send(text)) as client:
            assert read_all(client).endswith(b"ok")


def test_connections_above_the_limit_cost_those_that_have_waited_longest(running: Running):
    running.server.config.most_connections = 5
    idle = [running.connect() for _ in range(10)]
    wait_until(lambda: len(running.server.server_state.connections) == 5)
    assert running.is_healthy()
    newest = idle[-1]
    newest.sendall(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert read_all(newest).endswith(b"ok")
    for client in idle:
        client.close()


def test_clients_that_keep_their_connections_do_not_keep_others_out(running: Running):
    running.server.config.most_connections = 5
    kept = []
    for _ in range(6):
        kept.append(running.send("GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        while not kept[-1].recv(4096).endswith(b"ok"):
            pass
    assert kept[0].recv(1) == b""  # the first one was closed, and the last can be used again
    kept[-1].sendall(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert read_all(kept[-1]).endswith(b"ok")
    for client in kept:
        client.close()


# The end


def test_the_end_of_the_server_ends_streams_and_tasks(monkeypatch: pytest.MonkeyPatch):
    """One task runs, two wait, one client does nothing, one has sent half of a request, and one does not read."""
    running = Running(monkeypatch)
    stream = running.send(post("/stream"))
    wait_until(lambda: running.jobs and running.jobs[0].status == "generating")
    waiting = [running.send(post("/run")), running.send(post("/stream"))]
    wait_until(lambda: len(running.jobs) == 3)
    idle = running.send("GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(10)
    half, deaf = running.send(post("/echo")[:-1]), running.connect()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
    state = running.server.server_state
    wait_until(lambda: any(one.stalled_since is not None for one in list(state.connections)))
    running.stop()
    assert read_all(stream).rstrip().endswith(b"data: cancelled\n\n\r\n0")
    answers = [read_all(client) for client in waiting]
    assert answers[0].startswith(b"HTTP/1.1 503 ")
    assert b"data: cancelled" in answers[1]
    for client in (idle, half):
        read_all(client)  # until it is closed
        client.close()
    deaf.close()
    for client in (stream, *waiting):
        client.close()
    assert {job.status for job in running.jobs} == {"cancelled"}
    assert running.worker.stop(60)
    with pytest.raises(ConnectionRefusedError):
        running.connect()


def test_what_is_interrupted_at_the_end_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    """As by a second Ctrl-C: no task of the loop is left."""
    running = Running(monkeypatch)
    ending, closed = threading.Event(), []

    async def endless(sockets: Any = None) -> None:
        ending.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    monkeypatch.setattr(running.server, "shutdown", endless)
    client = running.send(post("/stream"))
    assert client.recv(10)
    running.server.end()
    assert ending.wait(60)
    running.server.stop()
    running.server.stop()
    running.thread.join(60)
    assert not running.thread.is_alive()
    client.close()
    assert closed == [True]
    assert running.worker.stop(60)
    running.server.stop()  # a signal may come late
