"""What a picture shows as far as duplicates and the review page need it; looked at once, and known again by a build
that goes on."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import output_error
from ..errors import MobileOError, OutputError
from ..files import JSONError, is_file, open_input, parse_json
from ..training.quadruplets import ImageRef, Problem

if TYPE_CHECKING:
    from PIL import Image

LOOKED_AT = "pictures.jsonl"
_THUMBNAIL = 160  # pixels on the longer side
_CELLS = 4  # on a side, of the colours that are compared


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        path: in its folder.
        digest: SHA-256 of size and pixels, in hexadecimal.
        width, height: upright, in pixels.
        look: 64 bits, its difference hash (dHash): whether the brightness rises from left to right, in 8 rows of 8.
        colours: the means of 4 x 4 cells, 48 bytes in hexadecimal: what brightness alone does not tell apart.
        thumbnail: a small JPEG, in Base64.
    """

    path: str
    digest: str
    width: int
    height: int
    look: int
    colours: str
    thumbnail: str


def look_at(folder: Path, names: Iterable[str], work: Path, *, thumbnails: bool = True) -> Iterator[Picture | Problem]:
    """Decodes pictures, or takes what an earlier build has seen of files that have not changed since.

    Args:
        folder: that they are in.
        names: their paths in it.
        work: the build's own folder, to which what is seen is added.
        thumbnails: whether they are wanted; else they are "" here, for of many pictures they take much memory.

    Yields:
        one for each name, in order.

    Raises:
        OutputError: the disk is full.
    """
    known = _read(work / LOOKED_AT, thumbnails)
    with Appended(work / LOOKED_AT) as seen:
        for name in names:
            try:
                found = os.stat(folder / name)
                key = [found.st_size, found.st_mtime_ns]
                if name in known and known[name][0] == key:
                    yield known[name][1]
                    continue
                picture = _look(name, ImageRef(folder / name).open())
            except MobileOError as error:
                # The path as the user knows it stands before it.
                yield Problem(name, str(error).replace(f"'{folder / name}'", "it").rstrip("."))
                continue
            except OSError as error:
                yield Problem(name, f"can't be read ({error.strerror or error})")
                continue
            seen.add({"file": key, **asdict(picture)})
            yield picture if thumbnails else replace(picture, thumbnail="")


def _look(name: str, image: Image.Image) -> Picture:
    from PIL import Image as Pillow

    width, height = image.size
    digest = hashlib.sha256(f"{width}x{height}:".encode() + image.tobytes()).hexdigest()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), reducing_gap=2.0)  # in place, and one pass over all pixels
    grey = image.convert("L").resize((9, 8), Pillow.Resampling.BOX).tobytes()
    look = 0
    for row in range(8):
        for column in range(8):
            look = look * 2 + (grey[9 * row + column + 1] > grey[9 * row + column])
    colours = image.resize((_CELLS, _CELLS), Pillow.Resampling.BOX).tobytes().hex()
    data = io.BytesIO()
    image.save(data, "JPEG", quality=75)
    return Picture(name, digest, width, height, look, colours, base64.b64encode(data.getvalue()).decode())


def _read(path: Path, thumbnails: bool) -> dict[str, tuple[list[int], Picture]]:
    known = {}
    for record in read_records(path):
        try:
            key = record.pop("file")
            picture = Picture(**(record if thumbnails else {**record, "thumbnail": ""}))
        except (KeyError, TypeError):  # of another version
            continue
        known[picture.path] = (key, picture)
    return known


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of ours, a line each; what a killed process has cut short is passed over."""
    if not is_file(path, error=OutputError):
        return
    with open_input(path, error=OutputError) as file:
        for line in file:
            try:
                record = parse_json(line)
            except JSONError:
                continue
            if isinstance(record, dict):
                yield record


class Appended:
    """A file to whose end lines are added, each at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path, -1

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def add(self, record: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            OutputError: the disk is full, or the folder is not writable.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._descriptor < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o666)
                size = os.fstat(self._descriptor).st_size
                if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise output_error(error, self._path) from error
