"""Listening, and ending: then no request is accepted any more, running jobs are cancelled, and streams are closed.

What is printed, and what signals do, is left to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OptionError
from ..event_loop import EventLoop
from .app import make_app
from .connections import MAX_HEADERS, Config, Connection, close_late
from .service import Service
from .settings import ServerSettings

log = logging.getLogger(__name__)

JOB_SECONDS = 5.0  # that the running job has to come to its next step
CLIENT_SECONDS = 2.0  # that clients have to read the end of their answers
KEEP_ALIVE_SECONDS = 75  # longer than clients keep connections: one that closes just when it is used fails a request
_BACKLOG = 100  # also how many are accepted at once, before one above the limit of connections is closed
_MOST_CONNECTIONS = Config.most_connections
_RESERVED_FILES = 300  # of those that a process may have open, for all else than connections
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_SENTENCES = {
    errno.EADDRINUSE: "port {port} is taken, by another program or another server; choose one with --port",
    errno.EACCES: "port {port} is kept for the system; choose one from 1024 on with --port",
    errno.EADDRNOTAVAIL: "--host {host} is not an address of this machine",
}


def listen(settings: ServerSettings) -> list[socket.socket]:
    """Sockets that hold the port from now on: before a model is loaded, for that takes a while.

    Raises:
        OptionError: the port is taken or reserved, or the host is not this machine.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise OptionError(f"--host {settings.host}: there is no such machine; give an address of this one.") from None
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            # A free port that was found for the first address is that of the others, too.
            port = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_listening(family, (address[0], port, *address[2:])))
        except OSError as error:
            problem = problem or error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # as where there is no IPv6
                break
    else:
        if sockets:
            return sockets
    assert problem is not None
    for each in sockets:
        each.close()
    sentence = _SENTENCES.get(problem.errno or 0, "the server can't listen at {host}, port {port}: {reason}")
    reason = problem.strerror or str(problem)
    raise OptionError(f"{sentence.format(host=settings.host, port=port, reason=reason)}.") from problem


def _listening(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(settings: ServerSettings, listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host = settings.host.strip("[]")
    host = WILDCARDS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


class Server(uvicorn.Server):
    """Serves until `end` is called.

    Args:
        service: its worker has loaded the model.
        sockets: of `listen`.
        on_ready: called with the server's address once it answers.
        on_request: called with a line about each answer that has begun.
    """

    def __init__(
        self,
        service: Service,
        sockets: Sequence[socket.socket],
        *,
        on_ready: Callable[[str], None] = lambda url: None,
        on_request: Callable[[str], None] | None = None,
    ) -> None:
        app: ASGIApp = make_app(service)
        super().__init__(
            Config(
                app if on_request is None else RequestLog(app, on_request),
                http=Connection,
                ws="none",
                lifespan="off",
                backlog=_BACKLOG,
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADERS,
            )
        )
        self._service, self._listeners, self._on_ready = service, list(sockets), on_ready
        self._loop: EventLoop | None = None
        self.config.most_connections = most_connections()  # type: ignore[attr-defined]

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves, and returns when it has ended."""
        for name in ("uvicorn.error", "asyncio", "python_multipart"):
            relay(name)
        self._loop = EventLoop()
        self._loop.run(self.serve(sockets or self._listeners))

    def end(self) -> None:
        """Begins the end; may be called in a signal's handler."""
        self.should_exit = True

    def stop(self) -> None:
        """Ends `run` there and then, likewise."""
        if self._loop is not None:
            self._loop.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the caller's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._service.base_url = url_of(self._service.settings, self._listeners[0])
        self._on_ready(self._service.base_url)

    async def on_tick(self, counter: int) -> bool:
        close_late(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nothing any more, cancels the jobs, lets streams say so, and goes, in a few seconds."""
        for listening in self.servers:
            listening.close()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        stop = self._service.worker.stop
        await _until(lambda: stop(0), JOB_SECONDS)
        await _until(self._has_answered, CLIENT_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await _until(self._has_answered, CLIENT_SECONDS)

    def _has_answered(self) -> bool:
        return not (self.server_state.connections or self.server_state.tasks)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits, at most so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


class RequestLog:
    """Middleware that describes each request by a line: who, what, the status, and the time until the answer began.

    Args:
        app: what answers.
        write: takes the line. It may hold anything that a client sent.
    """

    def __init__(self, app: ASGIApp, write: Callable[[str], None]) -> None:
        self._app, self._write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()

        async def send_logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                milliseconds = 1000 * (time.monotonic() - begun)
                client = (scope.get("client") or ("?",))[0]
                self._write(f"{client} {scope['method']} {scope['path']} {message['status']} {milliseconds:.0f} ms")
            await send(message)

        await self._app(scope, receive, send_logged)


def relay(name: str) -> None:
    """Sends what a library logs of errors to the log of ours, and nothing else of it anywhere."""

    # Connections that break, and tasks that are cancelled at the end, are nobody's mistake.
    usual = (asyncio.CancelledError, OSError) if name == "asyncio" else asyncio.CancelledError

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            if not isinstance(error, usual):
                log.handle(record)

    logger = logging.getLogger(name)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.handlers = [Relay()]


def most_connections() -> int:
    """How many connections may be open at once; the limit of open files is raised as far as that needs."""
    try:
        import resource
    except ImportError:  # Windows has none
        return _MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _RESERVED_FILES
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_CONNECTIONS if soft == unlimited else max(10, min(_MOST_CONNECTIONS, soft - _RESERVED_FILES))
