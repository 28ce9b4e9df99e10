"""The server's pictures: what was drawn, edited and uploaded, newest first, with thumbnails and a bin.

A picture is a PNG or WebP file of ours that says in its metadata how it was made. Its id is its time and 128 random
bits, so whoever knows one may see the picture. Thumbnails lie in a hidden subfolder, and are made again when missing.
What is deleted lies in a hidden bin for a day.

A picture that was drawn is never lost to a full disk, or to a folder that was removed: it stays in memory then, and
says so.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ImageError, MobileOError, OutputError
from ..files import JSONError, parse_json
from ..generation_options import check_seed, recorded_options
from ..image_settings import can_write, encode, read_metadata
from ..image_sources import MAX_PIXELS, opened
from ..images import load_image
from ..results import LOADING
from .picture_stores import Folder, Memory, Store, UnknownPictureError, unknown
from .scores import check_best_of
from .tasks import without_folders

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Kind", "Picture", "Pictures", "UnknownPictureError"]

Kind = Literal["generated", "edited", "uploaded"]

MEMORY_LIMIT = 2**28  # bytes of pictures that are kept in memory
LONGEST_SIDE = 4096  # pixels of an uploaded picture; no task looks at more
THUMBNAIL_SIDE = 320  # pixels

_ID = re.compile(r"([0-9]{8}-[0-9]{6}-[0-9]{6})-[0-9a-f]{32}")
_TIME = "%Y%m%d-%H%M%S-%f"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}
_STARTS = {".png": b"\x89PNG", ".webp": b"RIFF", ".jpg": b"\xff\xd8"}
_LOSSY = ("JPEG", "MPO", "WEBP", "HEIF", "AVIF", "JPEG2000")  # as Pillow calls formats
_MADE_BY: dict[str, Kind] = {"generate": "generated", "edit": "edited"}
_LONGEST_SETTINGS = 2**16  # bytes of JSON in an uploaded file
_TIDIED_EVERY = 3600  # seconds
_REMEMBERED = 5000  # pictures whose facts are kept in memory


@dataclass(frozen=True)
class Picture:
    """What is known about a picture.

    Attributes:
        id: its time and 128 random bits.
        width, height: in pixels.
        bytes: of the file.
        created_at: seconds since 1970.
        kind: where it comes from.
        settings: how it was made, as `GenerationResult.metadata` says it; None where that is not known.
        source: the id of the picture that was edited.
        warning: why it could not be kept in the folder; "" where it was.
    """

    id: str
    width: int
    height: int
    bytes: int
    created_at: int
    kind: Kind
    settings: dict[str, Any] | None = None
    source: str | None = None
    warning: str = ""

    def as_json(self) -> dict[str, Any]:
        """As the API gives it."""
        settings = None if self.settings is None else without_folders(self.settings)
        found = {
            "id": self.id,
            "object": "picture",
            "url": f"/v1/pictures/{self.id}/content",
            "thumbnail_url": f"/v1/pictures/{self.id}/thumbnail",
            "width": self.width,
            "height": self.height,
            "bytes": self.bytes,
            "created_at": self.created_at,
            "kind": self.kind,
            "seed": None if settings is None else settings.get("seed"),
            "settings": settings,
            "source": self.source,
        }
        return {**found, "warning": self.warning} if self.warning else found


class Pictures:
    """The pictures of a server. All methods may be called in any thread; they read and write files.

    Args:
        folder: where they are kept, and where those of earlier runs are found; None for memory alone.
        memory_limit: bytes of pictures that are kept in memory: all, or those that the folder did not take.

    Raises:
        OutputError: the folder can't be made or read.
    """

    def __init__(self, folder: Path | None, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self._memory = Memory(memory_limit)
        self._folder = None if folder is None else Folder(folder, is_id)
        self._stores: list[Store] = [self._memory] if self._folder is None else [self._folder, self._memory]
        self._lock = threading.Lock()
        self._facts: dict[str, Picture] = {}
        self._last = 0  # microseconds since 1970 of the newest id
        self._tidied = 0.0
        self._tidy()

    def add(self, data: bytes) -> Picture:
        """Keeps a picture that was drawn.

        Args:
            data: the file as `image_settings.encode` makes it. Its metadata say how it was made; for an edit of one of
                these pictures, `source` in them is its id.
        """
        return self._keep(data)

    def upload(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
        """Keeps a picture that somebody sent: upright, in sRGB, with no metadata but the settings of a file of ours.

        What comes in a lossy format is kept as WebP, all else as PNG; and with `LONGEST_SIDE` pixels at most.

        Args:
            data: the image file.
            max_pixels: more are refused before they are decoded.

        Raises:
            ImageError: it is no image, damaged or too large.
        """
        with opened(data) as (image, _):
            kind, size = image.format, image.size
        if size[0] * size[1] > max_pixels:
            raise ImageError(
                f"The image has {size[0]}x{size[1]} pixels, and at most {max_pixels / 1e6:g} million are accepted; "
                "make it smaller first."
            )
        image = load_image(data)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        metadata = {**(_clean(_metadata(data)) or {}), "kind": "uploaded"}
        return self._keep(encode(image, "WEBP" if kind in _LOSSY and can_write("WEBP") else "PNG", metadata))

    def get(self, id: str) -> Picture:
        """What is known about a picture.

        Raises:
            UnknownPictureError: there is none of this id.
            OutputError: the folder can't be read.
        """
        store = self._store_of(id)
        with self._lock:
            found = self._facts.get(id)
        return found or self._learn(_describe(id, store.read(id)[1]))

    def page(self, limit: int, before: str | None = None) -> tuple[list[Picture], bool]:
        """Some pictures, newest first.

        Args:
            limit: how many at most.
            before: an id; only older ones than this one.

        Returns:
            them, and whether there are older ones.

        Raises:
            UnknownPictureError: `before` is no id.
            OutputError: the folder can't be read.
        """
        if before is not None and not is_id(before):
            raise unknown(before)
        self._tidy()
        ids = sorted({id for store in self._stores for id in store.ids()}, reverse=True)
        found: list[Picture] = []
        for id in ids:
            if before is not None and id >= before:
                continue
            if len(found) == limit:
                return found, True
            try:
                found.append(self.get(id))
            except (UnknownPictureError, ImageError):  # just deleted by another server; or somebody damaged the file
                continue
        return found, False

    def content(self, id: str) -> tuple[bytes, str]:
        """The file, and its media type; raises as `get` does."""
        suffix, data = self._store_of(id).read(id)
        return data, _TYPES[suffix]

    def image(self, id: str) -> Image.Image:
        """The pixels, as RGB; raises as `get` does."""
        return load_image(self.content(id)[0], name=f"picture {id}")

    def thumbnail(self, id: str) -> tuple[bytes, str]:
        """A small WebP (PNG where Pillow has no WebP), and its media type; raises as `get` does."""
        store = self._store_of(id)
        data = store.thumbnail(id)
        if data is None:
            image = self.image(id)
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            stream = io.BytesIO()
            image.save(stream, **({"format": "WEBP", "quality": 80} if can_write("WEBP") else {"format": "PNG"}))
            data = stream.getvalue()
            store.keep_thumbnail(id, data)
        return data, "image/png" if data.startswith(b"\x89PNG") else "image/webp"

    def delete(self, id: str) -> None:
        """Moves a picture to the bin; raises as `get` does."""
        self._tidy()
        self._store_of(id).delete(id)
        with self._lock:
            self._facts.pop(id, None)

    def restore(self, id: str) -> Picture:
        """Takes a picture out of the bin; one that is not in it stays where it is. Raises as `get` does."""
        if not is_id(id):
            raise unknown(id)
        for store in reversed(self._stores):
            try:
                store.restore(id)
                break
            except UnknownPictureError:
                continue
        return self.get(id)

    def _store_of(self, id: str) -> Store:
        if not is_id(id):
            raise unknown(id)
        # Memory first: what is there is found even if the folder can't be read.
        for store in reversed(self._stores):
            if store.has(id):
                return store
        raise unknown(id)

    def _keep(self, data: bytes) -> Picture:
        id = self._new_id()
        picture = _describe(id, data)
        suffix = next(suffix for suffix, start in _STARTS.items() if data.startswith(start))
        try:
            self._stores[0].write(id, suffix, data)
        except OutputError as error:
            picture = replace(picture, warning=f"{error} The picture is kept in memory until the server ends.")
            self._memory.write(id, suffix, data)
        return self._learn(picture)

    def _learn(self, picture: Picture) -> Picture:
        with self._lock:
            self._facts[picture.id] = picture
            while len(self._facts) > _REMEMBERED:
                del self._facts[next(iter(self._facts))]
        return picture

    def _new_id(self) -> str:
        """Later than all others of this process, so that pictures of one moment keep their order."""
        with self._lock:
            self._last = max(time.time_ns() // 1000, self._last + 1)
            moment = _EPOCH + timedelta(microseconds=self._last)
        return f"{moment.strftime(_TIME)}-{secrets.token_hex(16)}"

    def _tidy(self) -> None:
        now = time.time()
        if now - self._tidied > _TIDIED_EVERY:
            self._tidied = now
            for store in self._stores:
                store.empty_bin()


def is_id(text: str) -> bool:
    """Whether a text has the form of an id: nothing in it can lead out of a folder."""
    return _ID.fullmatch(text) is not None and _moment(text) is not None


def _moment(id: str) -> datetime | None:
    try:
        return datetime.strptime(id[:22], _TIME).replace(tzinfo=timezone.utc)
    except ValueError:  # month 13
        return None


def _created_at(id: str) -> int:
    return int(((_moment(id) or _EPOCH) - _EPOCH).total_seconds())


def _describe(id: str, data: bytes) -> Picture:
    """Reads a file's header and metadata, and decodes nothing.

    Raises:
        ImageError: it is damaged.
    """
    with opened(data, f"picture {id}") as (image, _):
        width, height = image.size
    metadata = _metadata(data)
    kind, source = metadata.get("kind"), metadata.get("source")
    return Picture(
        id,
        width,
        height,
        len(data),
        _created_at(id),
        "uploaded" if kind == "uploaded" else _MADE_BY.get(str(metadata.get("task")), "uploaded"),
        _clean(metadata),
        source if isinstance(source, str) and is_id(source) else None,
    )


def _metadata(data: bytes) -> dict[str, Any]:
    """What a file says of how it was made; nothing where it is not one of ours."""
    try:
        return read_metadata(data)
    except ImageError:
        return {}


def _clean(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Settings that can be shown and drawn again: known names, values in range, text that can be encoded."""
    checks: dict[str, Any] = {name: option.checked for name, option in recorded_options().items()}
    checks |= {"seed": check_seed, "prompt": _check_text, "task": _check_text, "software": _check_text}
    checks |= {"image": _check_text, "image_sha256": _check_text, "best_of": check_best_of}
    found = {}
    for name, value in metadata.items():
        if name in LOADING:
            good = isinstance(value, LOADING[name]) or value is None
        elif name in checks:
            good = value is None or _passes(checks[name], value)
        else:
            continue
        if good:
            found[name] = value
    if not found.get("prompt"):
        return None
    text = json.dumps(found)
    try:
        return dict(parse_json(text)) if len(text) <= _LONGEST_SETTINGS else None
    except JSONError:  # half a pair
        return None


def _passes(check: Any, value: Any) -> bool:
    try:
        check(value)
    except (MobileOError, TypeError, ValueError):
        return False
    return True


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError("no text")
