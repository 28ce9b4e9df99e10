"""Where the server's pictures lie: files in a folder, or bytes in memory. What they are, `pictures.py` knows.

Ids come from requests. `pictures.py` has checked their form before, and a path is made only of a name that was found in
the folder.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from .. import files
from ..atomic import atomic_write
from ..errors import MobileOError, OutputError
from ..image_sources import MAX_BYTES

SUFFIXES = (".png", ".webp", ".jpg")
KEPT_IN_BIN = 24 * 3600  # seconds

_BIN, _THUMBNAILS = ".bin", ".thumbnails"  # the leading dot keeps them out of listings and globs
_SETTLED = 2 * 10**9  # nanoseconds; the coarsest times of folders that file systems keep


class UnknownPictureError(MobileOError):
    """There is no picture of an id, or no more."""


class Store(Protocol):
    """A place for pictures. Each method may be called in any thread."""

    def ids(self) -> Collection[str]:
        """Of all pictures, without those in the bin.

        Raises:
            OutputError: the folder can't be read.
        """

    def has(self, id: str) -> bool:
        """Whether a picture is here; raises as `ids` does."""

    def write(self, id: str, suffix: str, data: bytes) -> None:
        """Keeps a new picture.

        Raises:
            OutputError: it can't be written.
        """

    def read(self, id: str) -> tuple[str, bytes]:
        """The suffix and the content.

        Raises:
            UnknownPictureError: it is not here.
            OutputError: it can't be read.
        """

    def delete(self, id: str) -> None:
        """Moves a picture to the bin; raises as `read` does."""

    def restore(self, id: str) -> None:
        """Moves a picture back from the bin; raises as `read` does."""

    def thumbnail(self, id: str) -> bytes | None:
        """The one that was kept; None where there is none."""

    def keep_thumbnail(self, id: str, data: bytes) -> None:
        """Keeps one where that is possible; it can be made again."""

    def empty_bin(self) -> None:
        """Removes what has been in the bin for `KEPT_IN_BIN`, as far as that can be done."""


class Memory:
    """Pictures that are gone when the server ends. The oldest ones are dropped for new ones.

    Args:
        limit: bytes of all pictures together, those in the bin included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, bytes]] = {}
        self._bin: dict[str, tuple[float, tuple[str, bytes]]] = {}
        self._thumbnails: dict[str, bytes] = {}

    def ids(self) -> Collection[str]:
        with self._lock:
            return list(self._kept)

    def has(self, id: str) -> bool:
        with self._lock:
            return id in self._kept

    def write(self, id: str, suffix: str, data: bytes) -> None:
        with self._lock:
            self._kept[id] = (suffix, data)
            self._make_room(id)

    def read(self, id: str) -> tuple[str, bytes]:
        with self._lock:
            if id not in self._kept:
                raise unknown(id)
            return self._kept[id]

    def delete(self, id: str) -> None:
        with self._lock:
            if id not in self._kept:
                raise unknown(id)
            self._bin[id] = (time.time(), self._kept.pop(id))
            self._thumbnails.pop(id, None)

    def restore(self, id: str) -> None:
        with self._lock:
            if id not in self._bin:
                raise unknown(id)
            self._kept[id] = self._bin.pop(id)[1]

    def thumbnail(self, id: str) -> bytes | None:
        return self._thumbnails.get(id)

    def keep_thumbnail(self, id: str, data: bytes) -> None:
        with self._lock:
            if id in self._kept:
                self._thumbnails[id] = data

    def empty_bin(self) -> None:
        with self._lock:
            old = time.time() - KEPT_IN_BIN
            self._bin = {id: kept for id, kept in self._bin.items() if kept[0] > old}

    def _make_room(self, newest: str) -> None:
        size = sum(len(data) for _, data in self._kept.values()) + sum(len(kept[1]) for _, kept in self._bin.values())
        for id in [*sorted(self._bin), *sorted(self._kept)]:
            if size <= self._limit or id == newest:
                return
            _, data = self._bin.pop(id)[1] if id in self._bin else self._kept.pop(id)
            size -= len(data)
            self._thumbnails.pop(id, None)


class Folder:
    """Pictures as files. Several servers may share a folder, and what is not ours in it is neither shown nor touched.

    The names are kept in memory and read again when the folder has changed; nothing is opened for that.

    Args:
        path: made where there is none, for this user alone.
        is_id: whether a text has the form of an id.

    Raises:
        OutputError: it can't be made or read.
    """

    def __init__(self, path: Path, is_id: Callable[[str], bool]) -> None:
        self.path = Path(files.absolute(files.expand(path), error=OutputError))
        self._is_id = is_id
        self._lock = threading.Lock()
        self._suffixes: dict[str, str] = {}
        self._seen = (0, 0)  # when the folder was changed, and when it was read
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder for pictures '{path}' can't be made ({error.strerror}); choose another one."
            ) from error
        self.ids()

    def ids(self) -> Collection[str]:
        with self._lock:
            self._refresh()
            return list(self._suffixes)

    def has(self, id: str) -> bool:
        with self._lock:
            self._refresh()
            return id in self._suffixes

    def write(self, id: str, suffix: str, data: bytes) -> None:
        try:
            with atomic_write(self.path / f"{id}{suffix}") as temporary:
                temporary.write_bytes(data)
        except OutputError as error:
            raise self._without_path(error) from error
        with self._lock:
            self._suffixes[id] = suffix

    def read(self, id: str) -> tuple[str, bytes]:
        path = self._find(id)
        try:
            return path.suffix, files.read_bytes(path, limit=MAX_BYTES, error=OutputError)
        except OutputError as error:
            if files.kind_of(path, error=OutputError) == "":  # another server has just deleted it
                raise unknown(id) from error
            raise self._without_path(error) from error

    def delete(self, id: str) -> None:
        path = self._find(id)
        with self._explained(id):
            (self.path / _BIN).mkdir(mode=0o700, exist_ok=True)
            os.utime(path)  # from now on its time says when it was deleted; its name says when it was made
            os.rename(path, self.path / _BIN / path.name)
        with self._lock:
            self._suffixes.pop(id, None)
        with suppress(OSError):
            self._thumbnail_path(id).unlink()

    def restore(self, id: str) -> None:
        self.ids()  # which says it if the folder is gone
        for suffix in SUFFIXES:
            with self._explained(id), suppress(FileNotFoundError):
                os.rename(self.path / _BIN / f"{id}{suffix}", self.path / f"{id}{suffix}")
                with self._lock:
                    self._suffixes[id] = suffix
                return
        raise unknown(id)

    def thumbnail(self, id: str) -> bytes | None:
        try:
            return files.read_bytes(self._thumbnail_path(id), limit=2**20, error=OutputError) or None
        except OutputError:
            return None

    def keep_thumbnail(self, id: str, data: bytes) -> None:
        with suppress(OSError, OutputError):
            (self.path / _THUMBNAILS).mkdir(mode=0o700, exist_ok=True)
            with atomic_write(self._thumbnail_path(id), overwrite=True) as temporary:
                temporary.write_bytes(data)

    def empty_bin(self) -> None:
        old = time.time() - KEPT_IN_BIN
        for entry in self._ours(self.path / _BIN):
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < old:
                    os.unlink(entry.path)
        known = set(self.ids())
        for entry in self._ours(self.path / _THUMBNAILS):
            if Path(entry.name).stem not in known:
                with suppress(OSError):
                    os.unlink(entry.path)

    def _ours(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        with suppress(OSError), os.scandir(folder) as entries:
            yield from [entry for entry in entries if self._is_ours(entry)]

    def _is_ours(self, entry: os.DirEntry[str]) -> bool:
        stem, suffix = os.path.splitext(entry.name)
        known = stem in self._suffixes or self._is_id(stem)
        return suffix in SUFFIXES and known and entry.is_file(follow_symlinks=False)

    def _find(self, id: str) -> Path:
        with self._lock:
            self._refresh()
            if id not in self._suffixes:
                raise unknown(id)
            return self.path / f"{id}{self._suffixes[id]}"

    def _refresh(self) -> None:
        """Reads the names again if somebody else may have changed them."""
        try:
            now = time.time_ns()
            status = os.stat(self.path)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(0, "it is no folder")
            changed, read = self._seen
            # What changes within the smallest difference of times that the file system knows would not show.
            if status.st_mtime_ns == changed and read - changed > _SETTLED:
                return
            with os.scandir(self.path) as entries:
                names = [os.path.splitext(entry.name) for entry in entries if self._is_ours(entry)]
        except OSError as error:
            raise OutputError(
                f"the server's folder for pictures can't be read ({error.strerror}); make it again."
            ) from error
        self._suffixes = dict(names)
        self._seen = (status.st_mtime_ns, now)

    def _thumbnail_path(self, id: str) -> Path:
        return self.path / _THUMBNAILS / f"{id}.webp"

    @contextmanager
    def _explained(self, id: str) -> Iterator[None]:
        """Turns errors of the system into sentences."""
        try:
            yield
        except FileNotFoundError as error:
            raise unknown(id) from error
        except OSError as error:
            raise OutputError(
                f"the server's folder for pictures can't be changed ({error.strerror}); make it writable."
            ) from error

    def _without_path(self, error: OutputError) -> OutputError:
        """Where the folder lies is nothing to those who ask a server."""
        text = str(error).replace(f"{self.path}{os.sep}", "").replace(f"'{self.path}'", "for pictures")
        return OutputError(text.replace(str(self.path), "the server's folder for pictures"))


def unknown(id: str) -> UnknownPictureError:
    """The error about an id."""
    return UnknownPictureError(f"there is no picture {id[:80]!r}; it may have been deleted.")
