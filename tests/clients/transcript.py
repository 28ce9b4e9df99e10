"""What clients send and what they are answered, as text: for a file that MOBILEO_TRANSCRIPT names."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LONGEST = 3000  # characters of a body
_HEADERS = ("user-agent", "content-type", "retry-after")  # those that tell something


class Transcript:
    """An application that writes down each request and its answer, in the order in which they end.

    Args:
        app: what answers.
        path: of the file; what was written before is kept.
    """

    def __init__(self, app: ASGIApp, path: Path):
        self._app, self._path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent, answered, lines = bytearray(), bytearray(), [f"{scope['method']} {scope['path']}"]
        lines += _told(scope["headers"])

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                lines.append("(the client has gone)")
            sent.extend(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                lines.extend([shortened(sent), f"-> {message['status']}", *_told(message["headers"])])
            answered.extend(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        finally:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join([*filter(None, [*lines, shortened(answered)]), "", ""]))


def _told(headers: list[tuple[bytes, bytes]]) -> list[str]:
    found = ((name.decode(), value.decode("latin-1")) for name, value in headers)
    return [f"{name}: {value}" for name, value in found if name in _HEADERS]


def shortened(body: bytes | bytearray) -> str:
    """A body as text: without the bytes of images, and cut where it is long."""
    text = bytes(body).decode("utf-8", "replace")
    text = re.sub(r"(?:[A-Za-z0-9+/=_-]{24}){3,}[A-Za-z0-9+/=_-]*", "...", text)
    text = re.sub(r"[^\n -~]*[^\n -~\r][^\n]*(?:\n[^\n]*[^\n -~\r][^\n]*)*", "(binary)", text)
    text = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n..."
