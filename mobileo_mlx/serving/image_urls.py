"""Fetching an image from an address that a request names, so that the request can't reach what only this machine can.

Off unless the server was started with --allow-image-urls. The name is resolved once, every address that it has must be
public, and the connection goes to an address that was looked at: a name that changes its mind (DNS rebinding) changes
nothing. No redirect is followed, no proxy of the environment is asked, and size and time have limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

import h11

from .._version import __version__
from ..options import shown
from .errors import ApiError
from .origins import parse_host
from .settings import ServerSettings

_SECONDS = 20.0  # for all of it: the name, the connection, the answer
_AT_ONCE = 4  # images that are fetched, and names that are looked up
_LONGEST = 4096  # characters of a URL
_PRINTABLE = re.compile(r"[^\x00-\x20\x7f\\]+")

# 64:ff9b::/96 stands for IPv4 addresses, where a network translates; other addresses of machines begin with 001.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
# Tunnels and relays, protocols and documentation: Python's own list differs between its versions. 168.63.129.16 is the
# service of Azure's machines beside 169.254.169.254.
_SPECIAL = [
    ipaddress.ip_network(name)
    for name in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "168.63.129.16/32",
    )
]
_IN_QUERY = "%/:;=@!$&'()*+,~?[]"
_ADDRESSES = 3  # of a name, that are tried
_CONNECT_SECONDS = 6.0

_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_lookups = threading.BoundedSemaphore(_AT_ONCE)


class _Unfetchable(Exception):
    """Why an image can't be fetched: the end of a sentence."""


async def fetch_image(url: str, settings: ServerSettings, *, param: str) -> bytes:
    """The bytes that a public http or https address answers with; `images.load_image` says whether they are an image.

    Args:
        url: of port 80 or 443.
        settings: whether this is allowed, and the limit of bytes.
        param: the field of the request, for errors.

    Raises:
        ApiError: 400, it is not allowed, not a public address, or there is no image to be had.
    """
    if not settings.allow_image_urls:
        raise ApiError(
            400,
            "This server does not fetch images; send a data URI, or start the server with --allow-image-urls.",
            param=param,
            code="image_url_not_allowed",
        )
    try:
        async with _places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE)):
            return await Fetcher(limit=settings.max_body).fetch(url)
    except _Unfetchable as error:
        message = f"The image {shown(url)} can't be fetched: {error}."
        raise ApiError(400, message, param=param, code="invalid_image_url") from None


def is_public(address: str) -> bool:
    """Whether an IP address is that of a machine on the internet, and not of this machine or its network.

    An IPv6 address that stands for one of IPv4 is what that one is.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if (embedded := ip.ipv4_mapped) is None and ip in _TRANSLATED:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or any(ip in network for network in _SPECIAL))


def is_far(address: str) -> bool:
    """Whether an address is public, and not that of this machine or one beside it.

    At home each machine has a public IPv6 address; those of one network begin with the same 64 bits.
    """
    if not is_public(address):
        return False
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing, but chooses the address of ours that would be used
            own = probe.getsockname()[0]
    except OSError:
        return True  # it can't be reached at all
    return not is_near(address, own)


def is_near(address: str, own: str) -> bool:
    """Whether an address is this machine's `own`, or in the same IPv6 network."""
    theirs, ours = (ipaddress.ip_address(text.partition("%")[0]) for text in (address, own))
    bits = 64 if theirs.version == 6 else 32
    return theirs in ipaddress.ip_network(f"{ours}/{bits}", strict=False)


async def resolve(name: str, port: int) -> list[str]:
    """All addresses of a name. In a thread that nobody waits for: a resolver may take longer than the whole fetch.

    Raises:
        OSError: it has none.
    """
    if not _lookups.acquire(blocking=False):
        raise OSError("too many names are being looked up")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str]) -> None:
        if not future.done():
            future.set_result(addresses)

    def look_up() -> None:
        found: list[str] = []
        try:
            answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError):
            pass
        finally:
            _lookups.release()
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name="mobileo-resolve", daemon=True).start()
    return await future


@dataclass(frozen=True)
class Fetcher:
    """Fetches from public addresses.

    Attributes:
        limit: bytes of an answer.
        seconds: for all of it.
        ports: that may be asked.
        resolve: gives the addresses of a name.
        is_allowed: whether an address may be connected to.
        tls: gives what certificates are checked with.
    """

    limit: int
    seconds: float = _SECONDS
    ports: Container[int] = (80, 443)
    resolve: Callable[[str, int], Awaitable[list[str]]] = resolve
    is_allowed: Callable[[str], bool] = is_far
    tls: Callable[[], ssl.SSLContext] | None = None

    async def fetch(self, url: str) -> bytes:
        """The body of an answer with status 200.

        Raises:
            _Unfetchable: see there.
        """
        target = self._parse(url)
        try:
            return await asyncio.wait_for(self._fetch(*target), self.seconds)
        except asyncio.TimeoutError:
            raise _Unfetchable(f"it takes longer than {self.seconds:g} seconds") from None
        except ssl.SSLError:
            raise _Unfetchable("its certificate is not valid") from None
        except (OSError, h11.RemoteProtocolError):
            raise _Unfetchable("the connection failed") from None

    def _parse(self, url: str) -> tuple[str, str, int, str]:
        """Scheme, name, port, and what is asked for there."""
        if len(url) > _LONGEST:
            raise _Unfetchable("the address is too long")
        try:
            parts = urlsplit(url if _PRINTABLE.fullmatch(url) else "")
            name = (parts.hostname or "").encode("idna" if not url.isascii() else "ascii").decode()
            usual = {"http": 80, "https": 443}[parts.scheme]
            port = usual if parts.port is None else parts.port
        except (ValueError, KeyError):  # ValueError: odd ports, brackets and names, those of Unicode too
            raise _Unfetchable("it is not an http or https address") from None
        if parse_host(f"[{name}]" if ":" in name else name) is None:
            raise _Unfetchable("it names no machine")
        if parts.username is not None or parts.password is not None:
            raise _Unfetchable("it holds a user's name, which is not sent")
        if port not in self.ports:
            raise _Unfetchable(f"its port {port} is not one of the web's")
        # What is escaped stays so.
        target = quote(parts.path, safe="%/:;=@!$&'()*+,~") or "/"
        return parts.scheme, name, port, target + (f"?{quote(parts.query, safe=_IN_QUERY)}" if parts.query else "")

    async def _fetch(self, scheme: str, name: str, port: int, target: str) -> bytes:
        try:
            addresses = await self.resolve(name, port)
        except OSError:
            addresses = []
        # Whoever asks is not told which names of this network there are.
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise _Unfetchable("its name has no address, or one that is not public")
        reader, writer = await self._connect(addresses[:_ADDRESSES], port, name if scheme == "https" else None)
        try:
            literal = f"[{name}]" if ":" in name else name
            host = literal if port == {"http": 80, "https": 443}[scheme] else f"{literal}:{port}"
            return await self._converse(reader, writer, host, target)
        finally:
            writer.transport.abort()

    async def _connect(
        self, addresses: list[str], port: int, tls_name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the first address that answers. The name is for the certificate alone, it is not resolved again."""
        context = (self.tls or certificates)() if tls_name is not None else None
        for address in addresses:
            opening = asyncio.open_connection(address, port, ssl=context, server_hostname=tls_name)
            try:
                return await asyncio.wait_for(opening, _CONNECT_SECONDS)
            except ssl.SSLError:
                raise
            except (OSError, asyncio.TimeoutError):
                pass
        raise _Unfetchable("nobody answers there")

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str
    ) -> bytes:
        connection = h11.Connection(h11.CLIENT)
        headers = [
            ("Host", host),
            ("User-Agent", f"mobileo-mlx/{__version__}"),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ]
        writer.write(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        connection.send(h11.EndOfMessage())
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(2**16))
            elif isinstance(event, h11.Response):
                self._check(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.limit:
                    raise _Unfetchable(f"it has more than {self.limit:,} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)

    def _check(self, answer: h11.Response) -> None:
        if 300 <= answer.status_code < 400:
            raise _Unfetchable("it leads on to another address, which is not followed; give that one")
        if answer.status_code != 200:
            raise _Unfetchable(f"it answers with status {answer.status_code}")
        headers = dict(answer.headers)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _Unfetchable("it answers with compressed data, which was not asked for")
        if int(headers.get(b"content-length", b"0")) > self.limit:
            raise _Unfetchable(f"it has more than {self.limit:,} bytes")


def certificates() -> ssl.SSLContext:
    """The system's certificates, and those of the package certifi: Python from python.org has none on a Mac."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
