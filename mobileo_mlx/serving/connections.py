"""Connections of clients: those that owe a request, or do not read their answer, are not kept for ever.

uvicorn parses HTTP and has a limit on the size of headers, but none on the time that they take.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError

OWING_SECONDS = 15.0  # for the headers of a request, and for the rest of a body that was refused
STALLED_SECONDS = 60.0  # in which a client takes nothing of an answer that waits for it
MAX_HEADERS = 2**16  # bytes


class Connection(H11Protocol):
    """One connection, as uvicorn has it.

    Attributes:
        owing_since: when the client began to send what is not a whole request yet; None between requests, for which
            uvicorn has a limit, and while one is answered.
        stalled_since: when the client stopped to read.
    """

    owing_since: float | None = None
    stalled_since: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.owing_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        if self.owing_since is None and self.is_free:
            self.owing_since = self.loop.time()
        super().data_received(data)
        if not self.is_free:
            self.owing_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The rest of a body that nobody wanted, or the beginning of another request.
        if self.is_free and (self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]):
            self.owing_since = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; in the middle of an answer there is nothing more to say."""
        self.owing_since = self.loop.time()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and self.is_free:
            error = ApiError(400, f"This is no HTTP request, or its headers have more than {MAX_HEADERS:,} bytes.")
            body = json.dumps({"error": error.fields}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        elif self.cycle is not None:  # whoever reads the body hears that nothing follows
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def close_useless(connections: Collection[Any], now: float, limit: int) -> None:
    """Closes connections that have waited too long for their client, and the longest waiting ones above a limit.

    Args:
        connections: all that there are.
        now: the event loop's time.
        limit: how many may be open.
    """
    owing = sorted((one for one in connections if one.owing_since is not None), key=lambda one: one.owing_since)
    too_many = max(0, len(connections) - limit)
    late = [one for one in owing[too_many:] if now - one.owing_since > OWING_SECONDS]
    stalled = [
        one for one in connections if one.stalled_since is not None and now - one.stalled_since > STALLED_SECONDS
    ]
    for one in {*owing[:too_many], *late, *stalled}:
        one.transport.abort()
