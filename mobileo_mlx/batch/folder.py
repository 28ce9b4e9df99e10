"""The output folder, whose content says what is done.

    manifest.json              model and settings, which a run that goes on must have, too
    index.json                 by what the jobs file is known again
    0012/cat.png               pictures of lines 12001 to 13000, each whole
    0012/answers-3f9a01.jsonl  their answers, a file for each process that wrote some
    failed.jsonl               lines that were given up, with the reasons
    results.jsonl              at the end: all of it in the order of the lines

Files are only added to. The last line of one may be cut short where a process was killed: it counts for nothing, and is
removed by the next process that reads the file, unless somebody is still writing it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..atomic import atomic_write, output_error, remove_unfinished
from ..errors import ExistsError, OptionError, OutputError
from ..files import JSONError, expand, is_file, kind_of, open_input, parse_json, read_json
from ..locks import lock
from ..options import shown
from .tasks import Common, Task, shard_of

MANIFEST = "manifest.json"
FAILED = "failed.jsonl"

_HEAD = 2**13  # bytes of a PNG or JPEG in which the digest stands
_OPEN = 8  # files of answers that are kept open


@dataclass
class Shard:
    """What is done of a thousand lines.

    Attributes:
        names: of files.
        answers: records by line.
        read: how far each file of answers was read, in bytes.
    """

    names: set[str] = field(default_factory=set)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)


class Folder:
    """An output folder that a run works in.

    Args:
        path: from the root of the file system; see `make_folder`.

    Attributes:
        failed: lines that were given up, as far as is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: set[int] = set()
        self._token = secrets.token_hex(3)
        self._files: dict[str, int] = {}  # of this process's answers, by shard
        self._seen: tuple[int, int] = (0, 0)  # of failed.jsonl: which file it is, and how far it was read

    def close(self) -> None:
        """Flushes and closes what is open.

        Raises:
            OutputError: the disk is full.
        """
        self.flush()
        while self._files:
            os.close(self._files.popitem()[1])

    def flush(self) -> None:
        """Writes answers to the disk.

        Raises:
            OutputError: the disk is full.
        """
        for shard, descriptor in self._files.items():
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise output_error(error, self._answers(shard)) from error

    # What is done

    def shard(self, name: str, known: Shard | None = None) -> Shard:
        """What is done of the lines of one shard, read now.

        Args:
            name: of its folder.
            known: what was read of it before, which is brought up to date.

        Raises:
            OutputError: the folder can't be read.
        """
        folder, found = self.path / name, known or Shard()
        try:
            with os.scandir(folder) as entries:
                found.names = {entry.name for entry in entries}
        except FileNotFoundError:
            return found
        except OSError as error:
            raise OutputError(f"'{folder}' can't be read ({error.strerror}); check the disk.") from error
        for part in sorted(found.names):
            if part.startswith("answers-") and part.endswith(".jsonl"):
                for record, end in _records(folder / part, found.read.get(part, 0)):
                    found.read[part] = end
                    if record is not None:
                        found.answers.setdefault(record["line"], record)
        return found

    def is_done(self, task: Task, shard: Shard) -> bool:
        """Whether the result of a task is there.

        Raises:
            FileExistsError: there is a file of the picture's name that was not made by this line.
        """
        if not task.draws:
            return shard.answers.get(task.line, {}).get("digest") == task.digest
        if Path(task.path).name not in shard.names:
            return False
        with open_input(self.path / task.path, error=OutputError) as file:
            head = file.read() if task.path.endswith(".webp") else file.read(_HEAD)  # which has settings at its end
        if task.digest.encode() not in head:
            raise FileExistsError(f"'{task.path}' is there already, and was not made by this line; move it away")
        return True

    def add_answer(self, task: Task, answer: Mapping[str, Any]) -> None:
        """Keeps an answer.

        Raises:
            OutputError: the disk is full, or the folder is not writable.
        """
        record = {"id": task.id, "line": task.line, "task": task.task, **answer, "digest": task.digest}
        shard = shard_of(task.line)
        try:
            _append(self._open(shard), record)
        except OSError as error:
            raise output_error(error, self._answers(shard)) from error

    def add_failure(self, line: int, name: str, errors: list[str]) -> None:
        """Gives a line up.

        Raises:
            OutputError: the disk is full, or the folder is not writable.
        """
        self.failed.add(line)
        record = {"id": name, "line": line, "error": errors[-1], "attempts": len(errors), "errors": errors}
        path = self.path / FAILED
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                if lock(descriptor, wait=True):
                    _cut(descriptor)
                _append(descriptor, record)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise output_error(error, path) from error

    def read_failures(self) -> None:
        """Brings `failed` up to date with what other processes have given up."""
        path = self.path / FAILED
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return
        which, read = self._seen
        begin = read if which == found.st_ino else 0
        if found.st_size == begin:
            return
        for record, end in _records(path, begin):
            begin = end
            if record is not None:
                self.failed.add(record["line"])
        self._seen = (found.st_ino, begin)

    def forget_failures(self) -> int:
        """Lets all lines that were given up be tried again, and returns how many."""
        self.read_failures()
        count, self.failed, self._seen = len(self.failed), set(), (0, 0)
        try:
            (self.path / FAILED).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(error, self.path / FAILED) from error
        return count

    def failures(self) -> Iterator[dict[str, Any]]:
        """The records of lines that were given up; of each line the last one."""
        path = self.path / FAILED
        if is_file(path, error=OutputError):
            yield from {record["line"]: record for record, _ in _records(path, 0) if record is not None}.values()

    def _answers(self, shard: str) -> Path:
        return self.path / shard / f"answers-{self._token}.jsonl"

    def _open(self, shard: str) -> int:
        if shard not in self._files:
            while len(self._files) >= _OPEN:
                oldest = next(iter(self._files))
                os.fsync(self._files[oldest])
                os.close(self._files.pop(oldest))
            path = self._answers(shard)
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            lock(descriptor)  # as long as it is held, nobody takes the last line for one that was cut short
            self._files[shard] = descriptor
        return self._files[shard]


def make_folder(path: str | Path, *, manifest: str = MANIFEST) -> Path:
    """The output folder, which is made where it is missing.

    Args:
        path: of the folder.
        manifest: the name of the file that a run which goes on has left there, and which is written first.

    Returns:
        its path from the root of the file system.

    Raises:
        OutputError: it is a file, or holds something, but no manifest; or it can't be made or written.
    """
    target = Path(os.path.abspath(expand(path)))
    kind = kind_of(target, error=OutputError)
    if kind in ("file", "other"):
        raise OutputError(f"'{path}' is a file; name a folder.")
    try:
        if not kind:
            target.mkdir(exist_ok=True)  # another process may begin at the same moment
        others = [name for name in os.listdir(target) if not name.startswith(".")]
    except FileNotFoundError as error:
        raise OutputError(f"'{path}' can't be made: there is no folder '{target.parent}'; make it first.") from error
    except OSError as error:
        raise OutputError(f"'{path}' can't be written ({error.strerror}); choose another folder.") from error
    if others and not is_file(target / manifest, error=OutputError):  # asked last: it is written before all others
        raise OutputError(f"'{path}' holds other things ('{sorted(others)[0]}'); name a new folder.")
    if not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"'{path}' is not writable; choose another folder.")
    remove_unfinished(target)
    return target


def check_manifest(folder: Path, common: Common) -> None:
    """Writes what a run that goes on must have, or compares with what is there.

    Raises:
        OptionError: the folder was begun with another model, or other settings; it says which.
        OutputError: the folder can't be written.
    """
    path, settings = folder / MANIFEST, parse_json(json.dumps(common.settings))
    if not is_file(path, error=OutputError):
        manifest = {"format": 1, "software": f"mobileo-mlx {__version__}", "settings": settings}
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            return
        except ExistsError:  # another process has begun at the same moment
            pass
    found = read_json(path, error=OptionError, remedy="name a new folder").get("settings")
    if not isinstance(found, dict):
        raise OptionError(f"'{path}' is not the manifest of a batch; name a new folder.")
    names = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
    if names:
        words = [f"{name} was {_words(found.get(name))} and is {_words(settings.get(name))}" for name in names]
        raise OptionError(
            f"'{folder}' was begun with other settings: {'; '.join(words)}; give the same, or a new --out."
        )


def _words(value: Any) -> str:
    return "not given" if value is None else shown(value)


def _records(path: Path, begin: int) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """The records of a file of ours that stand behind a place, each with the place where it ends.

    None stands for what is none, as there may be where locks are missing; a last line that is cut short is passed over.
    """
    with open_input(path, error=OutputError) as file:
        size = os.fstat(file.fileno()).st_size
        if size > begin and os.pread(file.fileno(), 1, size - 1) != b"\n":
            _repair(path)
        file.seek(begin)
        for line in file:
            if not line.endswith(b"\n"):
                return
            begin += len(line)
            try:
                record = parse_json(line)
            except JSONError:
                record = None
            whole = isinstance(record, dict) and isinstance(record.get("line"), int)
            yield record if whole else None, begin


def _repair(path: Path) -> None:
    """Removes a last line that a killed process has left; not while somebody writes, or where that can't be told."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # a folder that may only be read
        return
    try:
        if _is_cut(descriptor) and lock(descriptor):
            _cut(descriptor)
    finally:
        os.close(descriptor)


def _is_cut(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _cut(descriptor: int) -> None:
    """Shortens a file to its last whole line."""
    size = os.fstat(descriptor).st_size
    while size and os.pread(descriptor, 1, size - 1) != b"\n":
        begin = max(0, size - 2**16)
        end = os.pread(descriptor, size - begin, begin).rfind(b"\n")
        size = begin if end < 0 else begin + end + 1
        os.ftruncate(descriptor, size)


def _append(descriptor: int, record: Mapping[str, Any]) -> None:
    """Writes a line at the end of a file, whole or not at all."""
    line = json.dumps(record).encode() + b"\n"
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
