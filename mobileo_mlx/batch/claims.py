"""Which process works on which chunk, where several work on one folder.

A claim is a small file whose lock is held while the chunk is worked on; the system gives it back when the process ends,
however it ends. The file says which line was being computed in that process: one that was begun and never ended has
killed it, perhaps. On file systems without locks everything can be claimed, and work may be done twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ..atomic import output_error
from ..files import JSONError, parse_json
from ..locks import lock

FOLDER = ".claims"


class Claim:
    """A chunk that this process works on.

    Attributes:
        deaths: by line, how many processes ended while they computed it.
    """

    def __init__(self, path: Path, descriptor: int, *, locked: bool) -> None:
        self._path, self._descriptor, self._locked = path, descriptor, locked
        self.deaths: dict[int, int] = {}
        if locked:
            self.deaths, running = _read(descriptor)
            if running:
                self.deaths[running] = self.deaths.get(running, 0) + 1
                self._write(0)

    def started(self, line: int) -> None:
        """Notes that a line is being computed in this process; 0 that none is."""
        if self._locked:
            self._write(line)

    def release(self, *, finished: bool) -> None:
        """Gives it back; where it is not finished, what is known of deaths stays."""
        with suppress(OSError):
            if self._locked and self.deaths and not finished:
                self._write(0)
            else:
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _write(self, running: int) -> None:
        text = json.dumps({"running": running, "deaths": self.deaths}).encode()
        # Never shorter than what it replaces, for a process may end between any two calls.
        text = text.ljust(os.fstat(self._descriptor).st_size)
        try:
            os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            raise output_error(error, self._path) from error


class Claims:
    """The claims of all processes in one output folder.

    Attributes:
        locks: whether the file system has locks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        try:
            self._folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self.locks = lock(file.fileno()) is not None
        except OSError as error:
            raise output_error(error, self._folder) from error

    def take(self, chunk: int) -> Claim | None:
        """Claims a chunk; None where another process works on it.

        Raises:
            OutputError: the folder can't be written.
        """
        path = self._folder / f"{chunk}.json"
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise output_error(error, path) from error
            held = lock(descriptor)
            if held is False:
                os.close(descriptor)
                return None
            if held is None or _is_at(descriptor, path):
                return Claim(path, descriptor, locked=bool(held))
            os.close(descriptor)  # it was finished, and removed, meanwhile

    def forget(self) -> None:
        """Forgets which lines processes have ended with, but for chunks that are being worked on."""
        for path in self._folder.glob("*.json"):
            if (claim := self.take(int(path.stem))) is not None:
                claim.release(finished=True)


def _read(descriptor: int) -> tuple[dict[int, int], int]:
    try:
        value = parse_json(os.pread(descriptor, 2**16, 0) or b"{}")
        deaths, running = value.get("deaths", {}), value.get("running", 0)
        return {int(line): int(count) for line, count in deaths.items()}, int(running)
    except (JSONError, OSError, AttributeError, TypeError, ValueError):  # a disk that was full
        return {}, 0


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
