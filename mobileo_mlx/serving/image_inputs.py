"""An image that a request holds: a data URI, bare base64, or the bytes of a form's part; to a Pillow image.

A text is never taken for a path of this machine. Images are decoded outside of the event loop, a few at a time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from ..errors import ImageError
from ..images import load_image
from .errors import ApiError
from .settings import ServerSettings

if TYPE_CHECKING:
    from PIL import Image

Result = TypeVar("Result")

# One image of 40 million pixels takes several times its 120 megabytes while it is decoded.
_DECODERS = ThreadPoolExecutor(2, thread_name_prefix="mobileo-images")

# A file of a hundred kilobytes may have 40 million pixels, and a request ten of those.
MAX_HELD = 2**31  # bytes of the decoded images of all requests, from when they are read until their tasks have ended

_DATA = re.compile(r"data:([^,;]{0,200})((?:;[^,;]{0,200}){0,8}),", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30}):", re.IGNORECASE)
_WHAT = "send its bytes as a data URI, data:image/png;base64,..."


async def read_image(source: str | bytes, settings: ServerSettings, *, param: str) -> Image.Image:
    """The image that a request holds, as `images.load_image` gives it: RGB, upright, in sRGB.

    Args:
        source: a data URI or base64, or the bytes of a file. An http URL, where the server allows them.
        settings: the limit of pixels, and whether URLs are fetched.
        param: the field of the request, for errors.

    Raises:
        ApiError: 400, it is nothing of these, damaged or too large; a URL, and those are off or it can't be fetched.
    """
    if isinstance(source, str) and re.match("https?:", source.lstrip(), re.IGNORECASE):
        data = await _fetch(source.strip(), settings, param)
    elif isinstance(source, str):
        # Megabytes of base64 take some milliseconds, which the event loop has for others.
        data = await _in_thread(decode_text, source, param)
    else:
        data = source
    return await _in_thread(decode_image, data, settings.max_pixels, param)


async def _fetch(url: str, settings: ServerSettings, param: str) -> bytes:
    if not settings.allow_image_urls:
        raise ApiError(
            400,
            f"This server does not fetch image URLs (--allow-image-urls lets it); {_WHAT}.",
            param=param,
            code="image_url_not_allowed",
        )
    from .image_urls import fetch_image

    return await fetch_image(url, settings, param=param)


async def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, function, *arguments)


def decode_text(text: str, param: str) -> bytes:
    """The bytes of a data URI, or of base64 alone.

    Base64 may lack its padding, hold white space, and be of the alphabet for URLs.

    Raises:
        ApiError: it is neither.
    """
    text = text.strip()
    if found := _DATA.match(text):
        if ";base64" not in found[2].lower():
            raise _refused("The data URI is not base64", param, code="invalid_base64")
        if found[1] and not found[1].lower().startswith(("image/", "application/octet-stream")):
            raise _refused(f"The data URI holds {found[1][:60]}, not an image", param)
        text = text[found.end() :]
    elif scheme := _SCHEME.match(text):
        raise _refused(f"An address that begins with {scheme[1].lower()}: is no image", param)
    if not text:
        raise _refused("The image is empty", param)
    try:
        raw = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
        raw = raw.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise _refused("The image is not base64", param, code="invalid_base64") from None


def decode_image(data: bytes, max_pixels: int, param: str) -> Image.Image:
    """The image of a file's bytes. Its size is known, and refused, before a pixel is decoded.

    Raises:
        ApiError: it can't be read, or is too large; 503, see `hold`.
    """
    try:
        return hold(load_image(data, max_pixels=max_pixels))
    except ImageError as error:
        raise ApiError(400, str(error), param=param, code="invalid_image") from None


def hold(image: Image.Image) -> Image.Image:
    """The image, whose memory is counted for as long as anybody has it.

    Raises:
        ApiError: 503, the images of all requests take too much together.
    """
    _images.add(image)
    return image


class _Images:
    """The images of requests that are in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[weakref.ref[Image.Image]] = []
        self._total = 0  # bytes of these, and of those that are gone and were not missed yet
        self._most = 1000  # after so many, those that are gone are looked for

    def add(self, image: Image.Image) -> None:
        size = _size(weakref.ref(image))
        with self._lock:
            if self._total + size > MAX_HELD or len(self._held) > self._most:
                self._held = [one for one in self._held if one() is not None]
                self._total = sum(map(_size, self._held))
                self._most = 1000 + 2 * len(self._held)
            if self._total + size > MAX_HELD:
                raise ApiError(
                    503,
                    "Many large images are being worked on; try again in a moment.",
                    code="busy",
                    headers={"Retry-After": "5"},
                )
            self._held.append(weakref.ref(image))
            self._total += size


_images = _Images()


def _size(reference: weakref.ref[Image.Image]) -> int:
    """Bytes of an image, of which Pillow takes four for a pixel."""
    image = reference()
    return 0 if image is None else 4 * image.width * image.height


def _refused(why: str, param: str, *, code: str = "invalid_image") -> ApiError:
    return ApiError(400, f"{why}; {_WHAT}.", param=param, code=code)
