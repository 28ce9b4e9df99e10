"""HTTP/1.1 over a bare socket: a client that can be slow, or leave in the middle of a byte stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"


class Dropped(Exception):
    """The server ended a connection before its answer was whole."""


class Refused(Exception):
    """The server answered with another status than 2xx."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes):
        super().__init__(f"{status}: {body[:300]!r}")
        self.status, self.headers, self.body = status, headers, body


@dataclass
class Connection:
    """One connection, kept alive over requests as clients do; it is opened with the first of them.

    Attributes:
        port: of 127.0.0.1.
        name: by which the server tells clients of one machine apart.
        receive_buffer: bytes that the kernel takes before the client reads; small for a slow reader.
    """

    port: int
    name: str = "benchmark"
    receive_buffer: int | None = None
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, repr=False)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection's two ends; opened where there is none."""
        if self._streams is None:
            plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            plug.setblocking(False)
            if self.receive_buffer is not None:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
            await asyncio.get_running_loop().sock_connect(plug, (HOST, self.port))
            limit = 1 << 16 if self.receive_buffer is None else self.receive_buffer
            self._streams = await asyncio.open_connection(sock=plug, limit=limit)
        return self._streams

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        try:
            _, writer = await self.streams()
            writer.write(data)
            await writer.drain()
        except OSError as error:
            raise Dropped(str(error)) from error

    def head(self, method: str, path: str, length: int, content_type: str = "application/json") -> bytes:
        """A request up to its body; `length` bytes are announced."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{self.port}", f"User-Agent: {self.name}"]
        if length:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode()

    async def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> AsyncIterator[bytes]:
        """Sends a request and gives the pieces of the answer's body as they come.

        Raises:
            Refused: another status than 2xx.
            Dropped: no answer, or half of one.
        """
        await self.send(self.head(method, path, len(body), content_type) + body)
        return self._answer()

    async def read(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        """As `request`, the whole body."""
        return b"".join([piece async for piece in await self.request(method, path, body, content_type)])

    async def json(self, method: str, path: str, value: Any = None) -> Any:
        """As `request`, with JSON both ways; None for an answer without a body."""
        body = b"" if value is None else json.dumps(value).encode()
        answer = await self.read(method, path, body)
        return json.loads(answer) if answer else None

    async def events(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> AsyncIterator[tuple[str, str]]:
        """As `request`, the server-sent events: name and data; comments are left out."""
        rest = b""
        async for piece in await self.request(method, path, body, content_type):
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                fields = [line.partition(": ")[::2] for line in event.decode().split("\n")]
                data = "\n".join(value for name, value in fields if name == "data")
                if data:
                    yield dict(fields).get("event", ""), data

    async def _answer(self) -> AsyncIterator[bytes]:
        reader, _ = await self.streams()
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(lines[0].split()[1])
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            if status < 300:
                async for piece in _body(reader, headers):
                    yield piece
            else:
                raise Refused(status, headers, b"".join([piece async for piece in _body(reader, headers)]))
        except (OSError, EOFError) as error:
            self.abort()
            raise Dropped(str(error)) from error
        if headers.get("connection", "").lower() == "close":
            await self.close()

    async def close(self) -> None:
        """Ends the connection as a client does that has what it wants."""
        if self._streams is not None:
            (_, writer), self._streams = self._streams, None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def abort(self) -> None:
        """Ends it as a client does that was killed."""
        if self._streams is not None:
            (_, writer), self._streams = self._streams, None
            writer.transport.abort()


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            while size:
                if not (piece := await reader.read(size)):
                    raise EOFError("the answer stops in a chunk")
                size -= len(piece)
                yield piece
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
