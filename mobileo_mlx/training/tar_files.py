"""Tar files of others: their members, with nothing believed that a header claims. Nothing is extracted."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from .gzipped import chunks
from .quadruplets import Malformed, read_range

_MAX_HEADER = 2**16  # bytes; attributes that tar keeps with a file take some thousand
# Longer than in any file's name. Some versions of tarfile search attributes in a time that is quadratic in this.
_MANY_DIGITS = re.compile(rb"\d{256}")
_MAX_NAME = 4096  # characters; more than any system takes
_BLOCK = 512
_OTHER_PACKERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


@dataclass
class Archive:
    """A tar file, or the last part of a file, as `tarfile` reads it: headers alone, and none of absurd size.

    Attributes:
        path: of the shard.
        file: what it is read from.
        start: where in it the archive begins; it ends at the file's end.
        packed: whether `file` is not what has the name `path`.
    """

    path: Path
    file: BinaryIO
    start: int
    packed: bool = False
    position: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.size = os.fstat(self.file.fileno()).st_size - self.start

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        if position < self.position:  # where the same would be read for ever
            raise tarfile.ReadError("a header leads back")
        self.position = position
        return position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        data = self.content(self.position, size)
        self.position += len(data)
        if _MANY_DIGITS.search(data):
            raise tarfile.ReadError("a header holds a number of hundreds of digits")
        return data

    def content(self, position: int, size: int) -> bytes:
        """Some bytes; fewer at the end."""
        return read_range(self.file, self.start + position, max(0, min(size, self.size - position)))


def unpack(file: BinaryIO, target: BinaryIO) -> int:
    """Appends what a gzipped file holds, and returns where that begins."""
    start = target.seek(0, os.SEEK_END)
    try:
        for data in chunks(file):
            target.write(data)
        target.flush()
    except OSError as error:
        raise Malformed(
            f"can't be unpacked into '{tempfile.gettempdir()}' ({error.strerror or error}); unpack it with gunzip"
        ) from error
    except Malformed:
        target.truncate(start)
        raise
    return start


def members(archive: Archive) -> Iterator[tarfile.TarInfo]:
    """All members of a tar file.

    Raises:
        Malformed: it is no tar file, or damaged, or something follows behind its end.
    """
    start = archive.content(0, 6)
    if packer := next((name for magic, name in _OTHER_PACKERS.items() if start.startswith(magic)), None):
        raise Malformed(f"is compressed with {packer}, and not with gzip; unpack it")
    count = 0
    member: tarfile.TarInfo | None = None
    try:
        tar = tarfile.open(fileobj=cast(Any, archive), mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while (following := tar.next()) is not None:
            setattr(tar, "members", [])  # noqa: B010 - which would grow with the archive; its type is not declared
            # The one before is whole only if there is a header behind it.
            if member is not None:
                yield member
            if following.size < 0 or tar.offset <= following.offset:
                raise tarfile.ReadError("a size is negative")
            if len(following.name) > _MAX_NAME:
                raise tarfile.ReadError(f"a name has {len(following.name)} characters")
            member = following
            count += 1
    except Exception as error:
        # Damaged headers make tarfile raise nearly anything: ValueError, OverflowError, EOFError, RecursionError, ...
        what = f"is cut short or damaged after {_files(count)}" if count else "is not a tar file that can be read"
        raise Malformed(f"{what} ({error}); get it again") from error
    end = tar.offset
    # An archive ends with zeros, which some versions of Python count to what was read.
    if bytes(_BLOCK) not in (archive.content(max(end - _BLOCK, 0), _BLOCK), archive.content(end, _BLOCK)):
        raise Malformed(f"is cut short or damaged after {_files(count)}; get it again")
    if archive.content(end, 2**16).strip(b"\0"):
        raise Malformed("goes on behind its end; if it is several tar files in one, give each by itself")
    if member is not None:
        yield member


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
