"""The load benchmark: that it sees what a server does wrong, and a small run of it on a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving.load import Load, Watched, alone, load, mixed
from benchmarks.serving.report import percentile
from benchmarks.serving.requests import Answer, Request, make_requests, read_stream
from benchmarks.serving.wire import Connection, Dropped, Refused

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(respond: Respond) -> AsyncIterator[int]:
    """A server whose answer to each body is what `respond` writes; gives its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("Content-Length:")), 0)
                await respond(await reader.readexactly(length), writer)
                await writer.drain()
        except (EOFError, OSError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def chunked(*pieces: bytes) -> bytes:
    chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in (*pieces, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def once(written: bytes, read: Callable[[Connection], Awaitable[Any]]) -> Any:
    """What a client reads of an answer that comes in pieces of one byte."""

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        for i in range(len(written)):
            writer.write(written[i : i + 1])
            await writer.drain()

    async def run() -> Any:
        async with serving(respond) as port, Connection(port) as connection:
            return await read(connection)

    return asyncio.run(run())


def test_bodies() -> None:
    assert once(whole(b'{"a": 1}'), lambda connection: connection.json("GET", "/")) == {"a": 1}
    assert once(chunked(b"ab", b"c" * 300), lambda connection: connection.read("GET", "/")) == b"ab" + b"c" * 300
    assert once(whole(b"", "204 No Content"), lambda connection: connection.json("DELETE", "/")) is None


def test_events_are_put_together_again() -> None:
    async def events(connection: Connection) -> list[tuple[str, str]]:
        return [event async for event in connection.events("GET", "/")]

    written = chunked(b"event: a\nda", b"ta: 1\n\n: still here\n\nid: 7\ndata: 2", b"\n\n")
    assert once(written, events) == [("a", "1"), ("", "2")]


def test_a_refusal_has_its_status_and_headers() -> None:
    with pytest.raises(Refused) as caught:
        once(whole(b"later", "429 Too Many", "Retry-After: 3"), lambda connection: connection.read("GET", "/"))
    assert (caught.value.status, caught.value.headers["retry-after"], caught.value.body) == (429, "3", b"later")


@pytest.mark.parametrize("cut", [5, 40, -1])
def test_half_an_answer_is_none(cut: int) -> None:
    written = chunked(b"0123456789" * 5)

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(written[:cut])
        writer.close()

    async def run() -> None:
        async with serving(respond) as port, Connection(port) as connection:
            await connection.read("GET", "/")

    with pytest.raises(Dropped):
        asyncio.run(run())


def test_a_stream_without_its_end_is_dropped() -> None:
    request = Request("chat, streamed", "a", "/", b"{}", "application/json", read_stream)
    chunk = json.dumps({"choices": [{"delta": {"content": "two"}, "finish_reason": "stop"}]})
    with pytest.raises(Dropped):
        once(chunked(f"data: {chunk}\n\n".encode()), request.ask)


async def echo(connection: Connection, request: Request) -> Answer:
    return ((await connection.read("POST", request.path, request.body)).decode(),)


ECHOED = [Request("echo", f"echo {i}", "/", f"body {i}".encode(), "text/plain", echo) for i in range(5)]


def loaded(respond: Respond, *, clients: int = 4, count: int = 40) -> Load:
    """What the load finds of a server that answers as it is told to, compared with one that echoes."""
    expected = {request.name: (request.body.decode(),) for request in ECHOED}

    async def run() -> Load:
        async with serving(respond) as port:
            return await load(port, mixed(ECHOED, count), expected, clients=clients)

    return asyncio.run(run())


def test_right_answers_are_counted() -> None:
    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body))

    found = loaded(respond)
    assert (found.answered, found.dropped, found.mixed_up, found.busy) == (40, [], [], 0)


def test_an_answer_of_another_request_is_found() -> None:
    bodies: list[bytes] = []

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        writer.write(whole(body if len(bodies) % 7 else bodies[-2]))

    found = loaded(respond)
    assert found.mixed_up
    assert found.answered + len(found.mixed_up) == 40
    assert not found.dropped


def test_a_lost_answer_is_found_and_the_client_goes_on() -> None:
    asked = 0

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked % 10:
            writer.write(whole(body))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            writer.close()

    found = loaded(respond)
    assert (found.answered, len(found.dropped)) == (36, 4)


def test_an_error_is_no_answer() -> None:
    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body, "500 Internal Server Error" if body == b"body 3" else "200 OK"))

    assert len(loaded(respond).dropped) == 8


def test_who_is_told_to_come_back_comes_back() -> None:
    told: set[bytes] = set()

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body in told:
            writer.write(whole(body))
        else:
            told.add(body)
            writer.write(whole(b"{}", "429 Too Many Requests", "Retry-After: 0"))

    found = loaded(respond)
    assert (found.answered, found.busy, found.dropped) == (40, 5, [])


def test_what_is_never_the_same_is_not_compared() -> None:
    asked = 0

    async def respond(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(whole(str(asked).encode()))

    async def run() -> None:
        async with serving(respond) as port:
            await alone(port, ECHOED)

    with pytest.raises(RuntimeError, match="echo 0"):
        asyncio.run(run())


def test_each_request_is_asked_as_often_as_another() -> None:
    order = mixed(ECHOED, 40)
    assert {name: sum(one.name == name for one in order) for name in {one.name for one in order}} == {
        request.name: 8 for request in ECHOED
    }
    assert order != mixed(ECHOED, 40, seed=1)
    assert order == mixed(ECHOED, 40)


def test_memory_that_grows_is_seen() -> None:
    """By the second half alone: the first fills caches."""
    filled = [(float(i), min(i, 10) * 1000) for i in range(41)]
    assert Watched(memory=filled).growth() == pytest.approx(0)
    assert Watched(memory=[(float(i), 5000 + 10 * i) for i in range(41)]).growth() == pytest.approx(200)
    assert Watched(memory=[(0.0, 1), (1.0, 5)]).growth() == 0


def test_percentiles() -> None:
    assert percentile(range(100), 0.95) == 95
    assert percentile([3.0], 0.95) == 3


def test_variants_differ() -> None:
    """Two requests of a kind differ in what is asked, so that an answer of another one can show."""
    made = make_requests(4)
    assert len({(request.path, request.body) for request in made}) == len(made)
    assert [request.body for request in made] == [request.body for request in make_requests(4)]


def test_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("starlette", "uvicorn", "python_multipart"):
        pytest.importorskip(name)
    sizes = ["--clients", "8", "--requests", "40", "--faults", "27", "--variants", "2", "--steps", "2"]
    assert command.main([*sizes, "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    (path,) = tmp_path.glob("serving-*.json")
    value = json.loads(path.read_text())
    assert value["load"]["answered"] == 40
    assert value["faults"]["answered"] == 27
    assert sum(value["faults"]["tried"].values()) == 27
    assert len(value["faults"]["tried"]) == 9
    assert value["load"]["health"]["count"] > 0
    assert value["load"]["health"]["unhealthy"] == {}
    assert value["after"]["same"] == value["after"]["compared"] == 14
    assert value["after"]["tracebacks"] == 0
    assert value["command"].startswith("python -m benchmarks.serving --clients 8")
    assert path.with_suffix(".md").read_text().strip() == capsys.readouterr().out.strip()
