"""Who may speak to the server: Host, Origin, the browser's own account of a request, and the API key; and the headers
that keep a browser from using an answer for something else.

A server on this machine's loopback is within reach of every page that the user's browser shows. A page can send
requests to it (a drive-by), or give the name that it was loaded from the address 127.0.0.1 (DNS rebinding). The first
has a foreign `Origin`, or says `Sec-Fetch-Site`; the second has a foreign `Host`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable

from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OptionError
from .errors import ApiError, api_error
from .origins import check_origin, check_trusted_host, is_loopback, is_origin, is_same, own_names, parse_host
from .settings import ServerSettings

_KEY = re.compile(r"[!-~]+")

# What needs no key: it says nothing of what anybody has drawn or asked.
_PUBLIC = re.compile(r"/|/health|/favicon\.ico|/docs|/openapi\.json|/page/[^/]+")
# Pictures have names of 128 random bits: whoever knows one may see the picture, and an <img> can send no key.
_PICTURE = re.compile(r"/v1/pictures/[^/]+/(?:content|thumbnail)")

_SHOWN = 100  # characters of what a client sends, in a sentence
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # addresses of pictures are secrets
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def check_key(key: str, name: str) -> str:
    """The key.

    Raises:
        OptionError: it can't be sent in a header; `name` is where it comes from. The sentence does not tell the key.
    """
    if not _KEY.fullmatch(key):
        raise OptionError(f"{name}: a key is letters, digits and signs of ASCII without blanks; make one of those.")
    return key


class Guard:
    """Middleware that lets nobody through to `app` who has no business there, and adds headers to each answer.

    Args:
        app: what is protected.
        settings: of the server.

    Raises:
        OptionError: an origin or a trusted host is not one.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._cors = frozenset(check_origin(origin) for origin in settings.cors_origins)
        self._key = None if settings.api_key is None else _digest(settings.api_key.encode())
        self._for_others = not is_loopback(settings.host)
        self._names = {"localhost", *(check_trusted_host(name) for name in settings.trusted_hosts)}
        if self._for_others:
            self._names |= {settings.host.lower().removesuffix("."), *own_names()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = _Request(scope)
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": self._guarded(request, message.get("headers", ()))}
            await send(message)

        try:
            self._check_host(request)
            self._check_origin(request)
            if request.method == "OPTIONS" and (methods := _methods(scope)):
                return await self._options(request, methods)(scope, receive, send_guarded)
            self._check_key(request)
            await self._app(scope, receive, send_guarded)
        except Exception as error:  # its answer is sent from here, so that it has the headers, too
            if started:
                raise
            await api_error(error).response()(scope, receive, send_guarded)

    def _check_host(self, request: _Request) -> None:
        hosts = request.values("host")
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            raise ApiError(400, "A request has one header Host with the name or the address of the server.")
        # An address can't be pointed at another machine, as a name can.
        if host.name in self._names or host.is_loopback or (self._for_others and host.address is not None):
            return
        name = host.name[:_SHOWN]
        raise ApiError(
            421,
            f"This server does not answer to the name {name}, which may be that of a web page in disguise; if it is "
            f"yours, start the server with --trusted-host {name}.",
            code="unknown_host",
        )

    def _check_origin(self, request: _Request) -> None:
        """Refuses what pages of others send; programs that are no browsers say nothing of all that is looked at."""
        origins = request.values("origin")
        if not origins:
            foreign = {"cross-site", "same-site"} & set(request.values("sec-fetch-site"))
            if foreign and not (request.is_navigation or request.is_picture):
                raise ApiError(403, "Another page than this server's own has no business here.", code="foreign_page")
        elif not (request.is_from(self._cors) or request.is_from_own_page):
            origin = origins[0][:_SHOWN]
            raise ApiError(
                403,
                f"Pages of {origin} may not use this server; if you want them to, start it with --cors-origin {origin}."
                if is_origin(origins[0])
                else "A page without an origin may not use this server.",
                code="foreign_page",
            )

    def _check_key(self, request: _Request) -> None:
        if self._key is None or request.is_public:
            return
        given = request.values("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = _digest(token.strip().encode("latin-1"))  # of one length: the time taken does not tell the key's
        if scheme.lower() != "bearer" or not secrets.compare_digest(digest, self._key):
            raise ApiError(
                401,
                "This server wants its API key: send the header 'Authorization: Bearer KEY'."
                if not given
                else "This is not the API key of the server.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="mobileo-mlx"'},
            )

    def _guarded(self, request: _Request, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers of an answer with those that it should have and lacks."""
        headers = list(headers)
        wanted = dict(_HEADERS)
        if request.is_picture:  # which pages of others may show, and nobody may run
            wanted["Cross-Origin-Resource-Policy"] = "cross-origin"
            headers = [(name, value) for name, value in headers if name.lower() != b"content-security-policy"]
        present = {name.lower().decode("latin-1") for name, _ in headers}
        added = [(name, value) for name, value in wanted.items() if name.lower() not in present]
        if self._cors:
            added.append(("Vary", "Origin"))
            if request.is_from(self._cors):
                (origin,) = request.values("origin")
                added += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", "*")]
        return [*headers, *((name.lower().encode(), value.encode("latin-1")) for name, value in added)]

    def _options(self, request: _Request, methods: str) -> Response:
        """The answer to the preflight of a page that may use the server, or to a bare OPTIONS, which tries a route."""
        headers = {"Allow": methods}
        if request.is_from(self._cors) and request.values("access-control-request-method"):
            headers |= {"Access-Control-Allow-Methods": methods, "Access-Control-Max-Age": "600"}
            if asked := request.values("access-control-request-headers"):
                headers["Access-Control-Allow-Headers"] = ", ".join(asked)
            if request.values("access-control-request-private-network"):
                headers["Access-Control-Allow-Private-Network"] = "true"
        return Response(status_code=204, headers=headers)


class _Request:
    """What is asked of a request before anybody reads its body."""

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.scheme: str = scope.get("scheme", "http")
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]

    def values(self, name: str) -> list[str]:
        """All that the header is given."""
        return [value.decode("latin-1") for key, value in self._headers if key.lower() == name.encode()]

    @property
    def is_navigation(self) -> bool:
        """Whether a browser opens it in a window of its own, as after a click on a link."""
        seen = (self.values("sec-fetch-mode"), self.values("sec-fetch-dest"))
        return self.method == "GET" and seen == (["navigate"], ["document"])

    @property
    def is_picture(self) -> bool:
        return self.method in ("GET", "HEAD") and _PICTURE.fullmatch(self.path) is not None

    @property
    def is_public(self) -> bool:
        return self.is_picture or (self.method in ("GET", "HEAD") and _PUBLIC.fullmatch(self.path) is not None)

    @property
    def is_from_own_page(self) -> bool:
        """Whether it says that it comes from a page of the server's own."""
        origins, hosts = self.values("origin"), self.values("host")
        return len(origins) == len(hosts) == 1 and is_same(origins[0], self.scheme, hosts[0])

    def is_from(self, allowed: frozenset[str]) -> bool:
        """Whether it says that it comes from a page of one of these origins."""
        origins = self.values("origin")
        return len(origins) == 1 and origins[0].lower() in allowed


def _methods(scope: Scope) -> str:
    """The methods of the routes that a path has, for `Allow`; "" where there is none."""
    app = scope.get("app")
    if app is None:
        return _METHODS
    found = {"OPTIONS"}
    for route in app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or {"GET", "HEAD"}
    return ", ".join(sorted(found)) if len(found) > 1 else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
