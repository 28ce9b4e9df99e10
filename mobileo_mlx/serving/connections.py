"""Connections of clients: those that owe a request, or do not read their answer, are not kept for ever.

uvicorn parses HTTP and has a limit on the size of headers, but none on the time that they take.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError

OWING_SECONDS = 15.0  # for the headers of a request, and for the rest of a body that was refused
STALLED_SECONDS = 60.0  # in which a client takes nothing of an answer that waits for it
MAX_HEADERS = 2**16  # bytes


class Config(uvicorn.Config):
    """uvicorn's settings, and one more.

    Attributes:
        most_connections: that are open at once; above it, the one goes that has waited longest for its client.
    """

    most_connections = 1000


class Connection(H11Protocol):
    """One connection, as uvicorn has it. Its `config` is a `Config` of this module.

    Attributes:
        owing_since: when the client began to send what is not a whole request yet; None between requests, for which
            uvicorn has a limit, and while one is answered.
        idle_since: when the last request was answered; None while there is another one.
        stalled_since: when the client stopped to read.
    """

    owing_since: float | None = None
    idle_since: float | None = None
    stalled_since: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.config.most_connections:  # type: ignore[attr-defined]
            waiting = [
                (since, one)
                for one in self.connections
                if isinstance(one, Connection) and (since := one.owing_since or one.idle_since) is not None
            ]
            _, late = min(waiting, key=lambda pair: pair[0], default=(0.0, self))
            late.close_now()
        self.owing_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self.idle_since = None
        if self.owing_since is None and self.is_free:
            self.owing_since = self.loop.time()
        super().data_received(data)
        if not self.is_free:
            self.owing_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The rest of a body that nobody wanted, or the beginning of another request.
        if self.is_free:
            owing = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
            self.owing_since, self.idle_since = (self.loop.time(), None) if owing else (None, self.loop.time())

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    def close_now(self) -> None:
        """Without a word."""
        self.connections.discard(self)  # it is not counted any more, whenever the system is done with it
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; in the middle of an answer there is nothing more to say."""
        self.owing_since = self.loop.time()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = ApiError(
                400,
                f"This is no HTTP request, or its headers have more than {MAX_HEADERS:,} bytes."
                if self.is_free
                else "The request's body is not sent as its headers say.",
            )
            body = json.dumps({"error": error.fields}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # whoever reads the body hears that nothing follows
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def close_late(connections: Collection[Any], now: float) -> None:
    """Closes connections whose client has let them wait too long.

    Args:
        connections: all that there are.
        now: the event loop's time.
    """
    for one in list(connections):
        owing = one.owing_since is not None and now - one.owing_since > OWING_SECONDS
        if owing or (one.stalled_since is not None and now - one.stalled_since > STALLED_SECONDS):
            one.close_now()
