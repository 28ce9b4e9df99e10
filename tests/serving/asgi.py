"""Asking an ASGI application directly: no socket, no thread, and nothing between the test and what it sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

Headers = Iterable[tuple[str, str]]


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def value(self, name: str) -> str | None:
        found = self.values(name)
        assert len(found) <= 1, found
        return found[0] if found else None

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def scope_of(method: str, path: str, headers: Headers, /, **more: Any) -> dict[str, Any]:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "method": method, "path": path, "scheme": "http", "headers": pairs, **more}


async def acall(
    app: Any, method: str, path: str, headers: Headers = (), /, *chunks: bytes | None, **more: Any
) -> Answer:
    """One request and its answer.

    Args:
        app: the application.
        method: of the request.
        path: of the request.
        headers: of the request.
        chunks: of its body; None where the client goes away. After the last one nothing comes any more.
        more: of the scope.
    """
    pieces = list(chunks) or [b""]
    events = [
        {"type": "http.disconnect"}
        if piece is None
        else {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)}
        for i, piece in enumerate(pieces)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not events:
            await asyncio.Event().wait()
        return events.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope_of(method, path, headers, **more), receive, send)
    start, *rest = sent
    pairs = [(name.decode(), value.decode("latin-1")) for name, value in start["headers"]]
    return Answer(start["status"], pairs, b"".join(message.get("body", b"") for message in rest))


def call(*arguments: Any, **more: Any) -> Answer:
    return asyncio.run(acall(*arguments, **more))
