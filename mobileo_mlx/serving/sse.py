"""Answers that take a while: they end the job when their client goes away, and streams are kept alive meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from .jobs import Job
from .service import Service

KEEPALIVE_SECONDS = 5.0  # less than the time after which any client or proxy is known to hang up


class ClientGone(Exception):
    """The client of a request has disconnected: there is nobody to answer."""


def sent_event(data: str, *, event: str | None = None, number: int | None = None) -> str:
    """One server-sent event; `data` has no line breaks."""
    lines = [f"id: {number}"] if number is not None else []
    lines += [f"event: {event}"] if event is not None else []
    return "\n".join([*lines, f"data: {data}", "", ""])


async def until_gone(receive: Receive) -> None:
    """Waits until the client disconnects; the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_to_end(service: Service, job: Job, request: Request) -> None:
    """Waits for a job's end, and cancels it if the client does not.

    Raises:
        ClientGone: it went.
        ApiError: the job failed.
    """
    ended = asyncio.ensure_future(job.ended())
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise ClientGone
        ended.result()
    finally:
        for each in (ended, gone):
            each.cancel()
        if not job.finished:
            service.worker.cancel(job)


class EventStream:
    """An answer of server-sent events.

    Args:
        events: the texts of `sent_event`.
        on_gone: called where the client goes away, or the server ends, before the last event was sent.
    """

    def __init__(self, events: AsyncIterator[str], *, on_gone: Callable[[], Any] | None = None):
        self._events, self._on_gone = events, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        gone = asyncio.ensure_future(until_gone(receive))
        following: asyncio.Task[str] = asyncio.ensure_future(self._next())
        complete = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                waited: set[asyncio.Task[Any]] = {following, gone}
                await asyncio.wait(waited, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not following.done():
                    text = ": keepalive\n\n"
                else:
                    try:
                        text = following.result()
                    except StopAsyncIteration:
                        break
                    following = asyncio.ensure_future(self._next())
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            complete = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            following.cancel()
            if not complete and self._on_gone is not None:
                self._on_gone()

    async def _next(self) -> str:
        return await anext(self._events)
