"""A task as a request to a server, and its answer; with the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ImageError, MobileOError, OptionError
from ..files import JSONError, expand, is_file, parse_json, read_text
from ..image_settings import read_metadata
from ..image_sources import MAX_BYTES
from ..images import load_image
from ..options import shown
from ..training.quadruplets import ImageRef
from .perform import with_settings
from .tasks import Task

_CONNECT = 10.0  # seconds
# A drawing on a slow machine, behind all that waits there. That a machine has gone is noticed by TCP far earlier.
_ANSWER = 3600.0
_MOST_PAUSE = 60.0
_MAX_FILE = 2**20  # bytes of a list of servers
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, and a count


class Gone(Exception):
    """A server does not answer; `working` where it had the task already."""

    def __init__(self, message: str, *, working: bool = False) -> None:
        super().__init__(message)
        self.working = working


class Busy(Exception):
    """A server wants to be asked again in some seconds."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class AtFault(Exception):
    """A server has refused a task, or failed on it."""


@dataclass(frozen=True)
class Server:
    """Where a server is.

    Attributes:
        url: without a path.
        key: "" for none.
    """

    url: str
    key: str = field(default="", repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    _open: set[http.client.HTTPConnection] = field(default_factory=set, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON value that a request is answered with.

        Raises:
            Gone, Busy, AtFault: see there.
            MobileOError: it refuses the key, or is no server of ours.
        """
        connection = self._connect()
        try:
            status, headers, data = self._exchange(connection, method, path, body)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        try:
            value = parse_json(data)
        except JSONError as error:
            if status == 200:
                raise AtFault(f"{self.url} has answered with what {error}") from error
            value = None
        if status == 200:
            return value
        raise self._refusal(status, headers, value)

    def hang_up(self) -> None:
        """Ends all requests, on which the server stops working, and begins no more."""
        self._closed.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    if connection.sock is not None:
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> http.client.HTTPConnection:
        place = urlsplit(self.url)
        host = place.hostname or ""
        if place.scheme == "https":
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, place.port, timeout=_CONNECT, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, place.port, timeout=_CONNECT)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise MobileOError(f"{self.url}: its certificate is not trusted ({error.verify_message}).") from error
        except OSError as error:
            raise Gone(f"{self.url} does not answer ({error.strerror or error})") from error
        connection.sock.settimeout(_ANSWER)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            if self._closed.is_set():
                connection.close()
                raise Gone(f"{self.url} is not asked any more")
            self._open.add(connection)
        return connection

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, Any, bytes]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        with suppress(OSError):  # it may answer before it has read all: that a body is too large, or that it is busy
            connection.request(method, path, data, headers)
        try:
            response = connection.getresponse()
            content = response.read(MAX_BYTES)
            if response.length:  # what `read` is silent about where it is given a limit
                raise http.client.IncompleteRead(content, response.length)
        except (OSError, http.client.HTTPException) as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            raise Gone(f"{self.url} went away while it worked on this ({why})", working=True) from error
        return response.status, response.headers, content

    def _refusal(self, status: int, headers: Any, value: Any) -> Exception:
        error = value.get("error") if isinstance(value, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        said = f"{self.url}: {message or f'status {status}'}"
        if status in (429, 503):
            try:
                seconds = float(headers.get("Retry-After", "1"))
            except ValueError:  # a date
                seconds = 1.0
            return Busy(said, min(max(0.1, seconds), _MOST_PAUSE))  # in this order NaN is 0.1
        if status in (401, 403):
            return MobileOError(
                f"{self.url} refuses the request ({message or status}); give its key in the file of --servers, or as "
                "MOBILEO_API_KEY."
            )
        if 300 <= status < 400:
            place = headers.get("Location", "another address")
            return MobileOError(f"{self.url} sends on to {shown(place)}; give the address of the server itself.")
        if status in (404, 405):
            return MobileOError(f"{self.url} is no server of mobileo-mlx, or of another version ({message or status}).")
        return AtFault(said)


def read_servers(text: str, key: str | None) -> list[Server]:
    """The servers that a user names.

    Args:
        text: addresses with commas between them; or a file with one a line, and behind a blank its key.
        key: of those without one.

    Raises:
        OptionError: an address is none, or there is none.
    """
    if is_file(expand(text), error=OptionError):
        content = read_text(expand(text), limit=_MAX_FILE, error=OptionError)
        entries = [line.split() for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    else:
        entries = [[part.strip()] for part in text.split(",") if part.strip()]
    servers = []
    for entry in entries:
        url, *own = entry
        try:
            place = urlsplit(url if "//" in url else f"http://{url}")
            port = place.port
        except ValueError:
            place, port = urlsplit(""), None
        if place.scheme not in ("http", "https") or not place.hostname or len(own) > 1 or place.username is not None:
            raise OptionError(
                "--servers: write addresses such as http://mac.local:8642, with commas between them, or the name of a "
                "file with one, and its key, a line."
            )
        host = f"[{place.hostname}]" if ":" in place.hostname else place.hostname
        servers.append(Server(f"{place.scheme}://{host}{f':{port}' if port else ''}", own[0] if own else key or ""))
    if not servers:
        raise OptionError(f"--servers {text}: there are no addresses in it.")
    if len({server.url for server in servers}) < len(servers):
        raise OptionError("--servers: an address is given twice.")
    return servers


def info_of(server: Server) -> dict[str, Any]:
    """Which model a server runs, and its version, as far as it says so.

    Raises:
        Gone, Busy, MobileOError: see `Server.ask`.
    """
    try:
        info = server.ask("GET", "/v1/info")
    except AtFault as error:
        raise MobileOError(f"{error}.") from error
    if not isinstance(info, dict) or "model" not in info:
        raise MobileOError(f"{server.url} does not say which model it runs; it may be of another version.")
    model = info["model"]
    name = model.get("id") if isinstance(model, dict) else model
    identity = info.get("identity")
    return {**(identity if isinstance(identity, dict) else {"model": name}), "version": info.get("version")}


def perform(server: Server, task: Task, suffix: str) -> tuple[bytes | None, dict[str, Any] | None]:
    """Lets a server do a task.

    Returns:
        the file of the picture, or the answer.

    Raises:
        Gone, Busy, AtFault, MobileOError: see `Server.ask`; AtFault also where an image can't be read here.
    """
    try:
        if task.draws:
            return _draw(server, task, suffix), None
        return None, _answer(server, task)
    except (KeyError, IndexError, TypeError, ValueError, ImageError) as error:
        if isinstance(error, ImageError):
            raise AtFault(str(error)) from error
        raise AtFault(f"{server.url} has answered in a form that is not known ({error!r})") from error


def _draw(server: Server, task: Task, suffix: str) -> bytes:
    body = {"prompt": task.text, "n": 1, "response_format": "b64_json", "output_format": "png", **task.options}
    if "width" in body and "height" in body:
        body["size"] = f"{body.pop('width')}x{body.pop('height')}"
    if task.task == "edit":
        body["image"] = _data_uri(task.images[0])
    path = "/v1/images/edits" if task.task == "edit" else "/v1/images/generations"
    data = base64.b64decode(server.ask("POST", path, body)["data"][0]["b64_json"])
    try:
        image = load_image(data)
    except ImageError as error:
        raise AtFault(f"{server.url} has answered with a picture that can't be read ({error})") from error
    try:
        metadata = read_metadata(data)
    except ImageError:  # a server that writes none
        metadata = {"task": task.task, "prompt": task.text, **task.options}
    if task.task == "edit":  # a server knows no name; and in the order of those that are made here
        digest = metadata.pop("image_sha256", None)
        metadata |= {"image": Path(task.images[0]).name, "image_sha256": digest}
    return with_settings(image, task, suffix, metadata)


def _answer(server: Server, task: Task) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": _data_uri(path)}} for path in task.images]
    content = [*images, {"type": "text", "text": task.text}]
    body = {"messages": [{"role": "user", "content": content}], **task.options}
    (choice,) = server.ask("POST", "/v1/chat/completions", body)["choices"]
    return {"text": str(choice["message"]["content"]), "finish_reason": str(choice["finish_reason"])}


def _data_uri(path: str) -> str:
    data = ImageRef(Path(path)).read()
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
