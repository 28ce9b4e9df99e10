"""Bodies that are too large, too slow, or of a kind that nobody reads; and clients that go meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mobileo_mlx.serving.body_limits import BodyLimits
from mobileo_mlx.serving.errors import ApiError, handle_error

from .asgi import Answer, acall, call, scope_of

JSON = ("Content-Type", "application/json")
CHUNKED = ("Transfer-Encoding", "chunked")


async def reader(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body, answers with its length."""

    async def read(request: Request) -> Response:
        if request.method == "DELETE":
            return Response("not read")
        try:
            return Response(str(len(await request.body())))
        except ClientDisconnect:
            return Response("gone")

    app = Starlette(
        routes=[Route("/", read, methods=["GET", "POST", "DELETE"])], exception_handlers={ApiError: handle_error}
    )
    await app(scope, receive, send)


def post(limits: BodyLimits, headers: Any, *chunks: bytes | None) -> Answer:
    return call(limits, "POST", "/", headers, *chunks, query_string=b"")


def limits(**more: Any) -> BodyLimits:
    return BodyLimits(reader, **{"max_body": 100, **more})


def test_a_body_of_the_largest_size_passes():
    answer = post(limits(), [JSON, ("Content-Length", "100")], b"x" * 60, b"x" * 40)
    assert (answer.status, answer.body) == (200, b"100")


@pytest.mark.parametrize("length", ["101", "99999999999999999999", "-1", "abc", "", "1e3", "9" * 5000])
def test_a_declared_length_is_refused_before_anything_is_read(length: str):
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    with pytest.raises(ApiError) as raised:
        post(BodyLimits(never, max_body=100), [JSON, ("Content-Length", length)])
    assert raised.value.status == 413


@pytest.mark.parametrize("headers", [[JSON, CHUNKED], [JSON, ("Content-Length", "100")]])
def test_bytes_are_counted_whatever_was_declared(headers: Any):
    answer = post(limits(), headers, b"x" * 60, b"x" * 41, b"x" * 10**6)
    assert (answer.status, answer.error["code"]) == (413, "too_large")


def test_a_body_that_stops_coming():
    """The pause is over at once, so that nothing is waited for."""

    async def half_sent() -> tuple[Answer, set[Any]]:
        never = asyncio.Event()
        events = [{"type": "http.request", "body": b"{", "more_body": True}]
        sent: list[Any] = []

        async def receive() -> Any:
            if not events:
                await never.wait()
            return events.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = scope_of("POST", "/", [JSON, ("Content-Length", "100")], query_string=b"")
        await limits(pause=0.01)(scope, receive, send)
        headers = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        return Answer(sent[0]["status"], headers, sent[1]["body"]), asyncio.all_tasks() - {asyncio.current_task()}

    answer, left = asyncio.run(half_sent())
    assert (answer.status, answer.error["code"], answer.value("connection")) == (408, "timeout", "close")
    assert not left


def test_a_body_that_drips():
    """Each piece comes within the pause, but so little of it that it would take for ever."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 7.5  # twice for each piece
        return now

    pieces = [b"x"] * 50
    answer = post(limits(clock=clock), [JSON, ("Content-Length", "50")], *pieces)
    assert answer.status == 408
    answer = post(limits(clock=clock, max_body=10**7), [JSON, CHUNKED], *[b"x" * 10**5] * 50)
    assert (answer.status, answer.body) == (200, b"5000000")  # as slow, but enough of it


def test_time_between_reads_is_not_the_clients():
    """Where a route takes its time over the pieces, nobody is told to have been slow."""
    times: Iterator[float] = iter([0.0, 1.0, 1000.0, 1001.0])
    answer = post(limits(clock=lambda: next(times)), [JSON, CHUNKED], b"x", b"x")
    assert (answer.status, answer.body) == (200, b"2")


def test_a_client_that_goes_is_heard():
    assert post(limits(), [JSON, CHUNKED], b"x", None).body == b"gone"


def test_waiting_for_the_end_of_a_client_has_no_limit():
    """The watcher of a long task waits longer than any pause."""

    async def watched() -> str:
        gone = asyncio.Event()
        events = [{"type": "http.request", "body": b"{}", "more_body": False}]
        seen: list[str] = []

        async def receive() -> Any:
            if events:
                return events.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watcher(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append("waits" if not waiting.done() else "ended")
            gone.set()
            seen.append((await waiting)["type"])

        # A pause that is over at once would end the second wait, if there was one.
        now = iter([0.0, 0.0, 1e9, 1e9])
        await BodyLimits(watcher, max_body=100, pause=1e-3, clock=lambda: next(now))(
            scope_of("POST", "/", [JSON, ("Content-Length", "2")]), receive, lambda message: None
        )
        return " ".join(seen)

    assert asyncio.run(watched()) == "waits http.disconnect"


def test_all_bodies_in_progress_have_a_limit():
    """Sixteen of the largest size; and what they held is free when they have been answered."""

    async def many() -> tuple[Answer, Answer]:
        release, full = asyncio.Event(), asyncio.Event()
        holding = 0

        async def holder(scope: Any, receive: Any, send: Any) -> None:
            nonlocal holding
            await receive()
            holding += 1
            if holding == 16:
                full.set()
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        one = BodyLimits(holder, max_body=100)
        headers = [JSON, ("Content-Length", "100")]
        held = [asyncio.ensure_future(acall(one, "POST", "/", headers, b"x" * 100)) for _ in range(16)]
        await full.wait()
        with pytest.raises(ApiError) as raised:
            await acall(one, "POST", "/", headers, b"x" * 100)
        assert (raised.value.status, "Retry-After" in raised.value.headers) == (503, True)
        release.set()
        await asyncio.gather(*held)
        return await acall(one, "POST", "/", headers, b"x" * 100), held[0].result()

    later, first = asyncio.run(many())
    assert later.status == first.status == 200


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "multipart/form-data; boundary=x",
        "image/png",
        "application/octet-stream",
    ],
)
def test_kinds_that_are_read(kind: str):
    assert post(limits(), [("Content-Type", kind), ("Content-Length", "2")], b"{}").status == 200


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "text/json", "", "json", ";application/json", "\xff"]
)
def test_kinds_that_are_not(kind: str):
    headers = [("Content-Length", "2"), *([("Content-Type", kind)] if kind else [])]
    with pytest.raises(ApiError, match="curl: -H 'Content-Type: application/json'") as raised:
        post(limits(), headers, b"{}")
    assert raised.value.status == 415


def test_compressed_bodies_are_refused():
    with pytest.raises(ApiError, match="compressed"):
        post(limits(), [JSON, ("Content-Length", "2"), ("Content-Encoding", "gzip")], b"\x1f\x8b")
    assert post(limits(), [JSON, ("Content-Length", "2"), ("Content-Encoding", "identity")], b"{}").status == 200


def test_requests_without_a_body_need_no_kind():
    assert call(limits(), "GET", "/", [], query_string=b"").status == 200
    assert call(limits(), "DELETE", "/", [("Content-Length", "0")], query_string=b"").status == 200
