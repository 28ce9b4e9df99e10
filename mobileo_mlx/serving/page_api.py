"""The page at `/`: its few files, read once and served from memory, so that no path of the disk is in a request."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..files import read_bytes
from .errors import ApiError
from .service import Service

FOLDER = Path(__file__).parent / "page"

_MAX_BYTES = 2**20  # of a file

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# All comes from this server; pictures may also be previews (data:) and files that were just chosen (blob:).
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # A browser asks each time, and gets 304 where nothing has changed: a new version is seen at once.
    "Cache-Control": "no-cache",
}


@cache
def page_files() -> dict[str, tuple[bytes, str, str]]:
    """The page's files by name: content, type and entity tag."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _TYPES:
            data = read_bytes(path, limit=_MAX_BYTES)
            found[path.name] = (data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module; the page asks the other routes for all that depends on the service."""
    return [Route("/", page_file), Route("/page/{name}", page_file)]


async def page_file(request: Request) -> Response:
    """A file of the page; `index.html` for `/`."""
    name = request.path_params.get("name", "index.html")
    if name not in page_files():
        raise ApiError(404, f"There is no {request.url.path}.", code="not_found")
    data, kind, tag = page_files()[name]
    headers = {**_HEADERS, "ETag": tag}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
