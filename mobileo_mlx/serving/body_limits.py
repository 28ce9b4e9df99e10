"""How much a request may send, how slowly, and of which kind: looked at while its body comes, before it is parsed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

PAUSE_SECONDS = 20.0  # between two pieces of a body, and before the first
_BYTES_PER_SECOND = 4096  # the slowest line that is waited for, after the first pause
_BODIES_AT_ONCE = 16  # of the largest size: what all requests in progress may hold in memory

_READABLE = ("application/json", "multipart/form-data", "application/octet-stream")


class BodyLimits:
    """Middleware that refuses bodies that are too large, too slow, or of a kind that no route reads.

    What else comes from a client, above all that it has gone, passes through as it is.

    Args:
        app: what reads the bodies.
        max_body: bytes of one.
        pause: seconds that may pass without a byte.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._max_body, self._pause, self._clock = app, max_body, pause, clock
        self._held = 0  # bytes of all requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        self._check(headers)
        count, waited, complete = 0, 0.0, False

        async def receive_limited() -> Message:
            nonlocal count, waited, complete
            if complete:  # all that still comes is that the client goes
                return await receive()
            begun = self._clock()
            left = min(self._pause, self._pause + count / _BYTES_PER_SECOND - waited)
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                raise ApiError(
                    408,
                    f"The request's body stopped coming, or came too slowly, after {count:,} bytes; send it again.",
                    code="timeout",
                    headers={"Connection": "close"},
                ) from None
            waited += self._clock() - begun
            if message["type"] == "http.request":
                length = len(message.get("body", b""))
                count += length
                self._held += length
                complete = not message.get("more_body", False)
                if count > self._max_body:
                    raise self._too_large()
                if self._held > _BODIES_AT_ONCE * self._max_body:
                    raise ApiError(
                        503,
                        "Many large requests are being read; try again in a moment.",
                        code="busy",
                        headers={"Retry-After": "5"},
                    )
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._held -= count

    def _check(self, headers: Headers) -> None:
        """What can be told from the headers alone.

        Raises:
            ApiError: 413 or 415.
        """
        if "transfer-encoding" not in headers:
            length = headers.get("content-length", "0")
            if not re.fullmatch("[0-9]{1,20}", length) or int(length) > self._max_body:
                raise self._too_large()
            if int(length) == 0:
                return
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "The request's body is compressed; send it as it is.", code="unsupported_encoding")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind in _READABLE:
            return
        said = f"The Content-Type {kind[:100]!r} is" if kind else "A body without a Content-Type is"
        raise ApiError(
            415,
            f"{said} not read here; send JSON as application/json (curl: -H 'Content-Type: application/json'), a form "
            "with files as multipart/form-data (curl: -F), or an image under its own type.",
            code="unsupported_media_type",
        )

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The request's body has more than {self._max_body:,} bytes; send smaller images.", code="too_large"
        )
