"""The jobs file: read in chunks where they are needed, checked once, and known again when a run goes on.

Of ten million lines nothing is held but where every thousandth begins, a digest of each thousand, and while ids are
compared eight bytes for each.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic import atomic_write
from ..errors import MobileOError, OptionError
from ..files import JSONError, check_input, is_file, open_input, parse_json, read_json
from ..training.gzipped import chunks as unpacked_pieces
from ..training.gzipped import is_gzip
from ..training.quadruplets import Malformed
from .tasks import SHARD, Common, LineError, Task, file_name, name_of, read_task

CHUNK = 20  # lines that are claimed, and given to an engine, at once; a divisor of `SHARD`
MAX_LINE = 2**20  # bytes
MADE = ".jobs.jsonl"  # in an output folder: tasks that a command has made itself

_INDEX = "index.json"
_UNPACKED = "jobs.jsonl"
_REMEDY = "give it as it was, with lines added at most, or another --out."


@dataclass(frozen=True)
class BadLine:
    """What is wrong with a line, in words that follow its number; and its id, which is its number where it has none."""

    line: int
    problem: str
    id: str


@dataclass
class Index:
    """Where lines are, and by what the file is known again.

    Attributes:
        lines: how many there are, blank ones among them.
        tasks: how many there are that are not blank.
        offsets: of the first line of each thousand, in bytes.
        digests: of each thousand, without the ends of lines; of the last one as far as it goes.
        checked: with which settings all lines were found to be good; "" where they were not.
        repeated: lines that have the name of an earlier one, which is the value.
    """

    lines: int = 0
    tasks: int = 0
    offsets: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    checked: str = ""
    repeated: dict[int, int] = field(default_factory=dict)


class Jobs:
    """A jobs file of a run.

    Args:
        path: of the file as text; see `open_jobs`.
        index: see there.
        common: what all lines have in common.
    """

    def __init__(self, path: Path, index: Index, common: Common) -> None:
        self.path, self.index, self.common = path, index, common
        self._file = open_input(path, error=OptionError)
        self._next = (1, 0)  # the line that the cursor stands before, and its offset

    @property
    def chunks(self) -> int:
        """How many chunks there are; they are numbered from 0."""
        return -(-self.index.lines // CHUNK)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def lines(self, first: int, count: int) -> Iterator[tuple[int, bytes | None]]:
        """Some of the lines with their numbers; blank ones are left out, None stands for one that is too long."""
        last = min(first + count - 1, self.index.lines)
        number, offset = self._next
        if number > first or first - number > SHARD:
            number = (first - 1) // SHARD * SHARD + 1
            offset = self.index.offsets[(first - 1) // SHARD]
        self._file.seek(offset)
        while number <= last:
            size, line = _read_line(self._file)
            if not size:  # the file was cut short meanwhile
                raise OptionError(f"'{self.path}' is shorter than it was; put back what it held, and start again.")
            offset += size
            number += 1
            self._next = (number, offset)
            if number > first and line != b"":
                yield number - 1, line

    def chunk(self, number: int) -> Iterator[Task | BadLine]:
        """The tasks of a chunk, and what is wrong with its other lines."""
        for line, text in self.lines(number * CHUNK + 1, CHUNK):
            if line in self.index.repeated:
                yield _repeats(text, line, self.index.repeated[line])
                continue
            yield _task(text, line, self.common)

    def check(self) -> Iterator[BadLine]:
        """Checks all lines, and remembers those that repeat an id.

        Yields:
            what is wrong, not always in the order of the lines.
        """
        names = array("Q")
        numbers = array("Q")
        for line, text in self.lines(1, self.index.lines):
            found = _task(text, line, self.common, look=True)
            if isinstance(found, BadLine):
                yield found
            else:
                names.append(_number_of(found))
                numbers.append(line)
        self.index.repeated = self._repeated(names, numbers)
        for line, first in self.index.repeated.items():
            ((_, text),) = self.lines(line, 1)
            yield _repeats(text, line, first)

    def _repeated(self, names: array[int], numbers: array[int]) -> dict[int, int]:
        """Lines whose name an earlier line has, with that line."""
        import numpy as np

        hashes = np.frombuffer(names, np.uint64) if names else np.zeros(0, np.uint64)
        ordered = np.sort(hashes)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        lines = np.frombuffer(numbers, np.uint64)[np.isin(hashes, twice)] if len(twice) else ()
        first: dict[str, int] = {}
        repeated = {}
        for line in map(int, lines):
            ((_, text),) = self.lines(line, 1)
            task = _task(text, line, self.common)
            assert isinstance(task, Task)
            if (earlier := first.setdefault(file_name(task.id).casefold(), line)) != line:
                repeated[line] = earlier
        return repeated


def open_jobs(path: Path, folder: Path, common: Common) -> tuple[Jobs, bool]:
    """Opens a jobs file, which may be gzipped: then it is unpacked into the folder, for lines are read in any order.

    Args:
        path: of the file.
        folder: the output folder, which knows the file again.
        common: what all lines have in common.

    Returns:
        the file, and whether its lines are known to be good; else `check` and `keep_index` are to be called.

    Raises:
        OptionError: it can't be read, holds no lines, or is not what the folder was begun with: lines that were there
            have changed. Lines that were added are fine.
        OutputError: it can't be unpacked there.
    """
    text = _as_text(path, folder)
    old = _read_index(folder)
    index = _scan(text, path, old)
    if index.tasks == 0:
        raise OptionError(f"'{path}' holds no tasks: write a JSON object a line.")
    known = old is not None and (old.lines, old.checked) == (index.lines, _mark(common))
    if old is not None and known:
        index.checked, index.repeated = old.checked, old.repeated
    return Jobs(text, index, common), known


def keep_index(jobs: Jobs, folder: Path, *, good: bool) -> None:
    """Lets the folder know the file again.

    Args:
        jobs: the file.
        folder: the output folder.
        good: whether all lines were found to be good.

    Raises:
        OutputError: the folder can't be written.
    """
    index = jobs.index
    index.checked = _mark(jobs.common) if good else ""
    value = {**vars(index), "repeated": {str(line): first for line, first in index.repeated.items()}}
    with atomic_write(folder / _INDEX, overwrite=True) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def entry_of(text: bytes | None) -> Any:
    """The JSON value of a line.

    Raises:
        LineError: it is none.
    """
    if text is None:
        raise LineError(f"is longer than {MAX_LINE >> 20} MB")
    try:
        return parse_json(text)
    except JSONError as error:
        raise LineError(str(error).replace("at line 1, ", "at ")) from error


def id_of(text: bytes | None, line: int) -> str:
    """The id of a line that may be a bad one; its number where it has none that can be."""
    try:
        entry = entry_of(text)
        return name_of(entry, line) if isinstance(entry, dict) else str(line)
    except LineError:
        return str(line)


def _task(text: bytes | None, line: int, common: Common, *, look: bool = False) -> Task | BadLine:
    try:
        return read_task(entry_of(text), line, common, look=look)
    except LineError as error:
        return BadLine(line, str(error), id_of(text, line))


def _repeats(text: bytes | None, line: int, first: int) -> BadLine:
    return BadLine(line, f"has the id, or name of a file, of line {first}", id_of(text, line))


def _number_of(task: Task) -> int:
    name = file_name(task.id).casefold().encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _mark(common: Common) -> str:
    """Of what makes a line good or bad, beside itself."""
    return hashlib.sha256(json.dumps([str(common.folder), common.digest]).encode()).hexdigest()[:32]


def _read_line(file: BinaryIO) -> tuple[int, bytes | None]:
    """The size of the next line, and the line without its end; None for one that is too long; 0 at the end."""
    line = file.readline(MAX_LINE + 1)
    size = len(line)
    if size <= MAX_LINE:
        return size, line.strip()
    while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
        size += len(line)
    return size, None


def _scan(text: Path, path: Path, old: Index | None) -> Index:
    """Goes through all lines without parsing them; `path` is for messages."""
    index, digest, offset = Index(), hashlib.sha256(), 0
    with open_input(text, error=OptionError) as file:
        if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            raise OptionError(f"'{path}' holds a JSON array; write one object a line instead.")
        file.seek(0)
        while True:
            size, line = _read_line(file)
            if index.lines % SHARD == 0 or not size:
                if index.lines:
                    _close_shard(index, digest, path, old)
                if not size:
                    break
                digest = hashlib.sha256()
                index.offsets.append(offset)
            offset += size
            index.lines += 1
            index.tasks += line != b""
            digest.update(str(size).encode() if line is None else line)
            digest.update(b"\n")
            if old is not None and index.lines == old.lines and index.lines % SHARD:
                _compare(old, len(index.offsets) - 1, digest.hexdigest()[:32], path)
    if old is not None and index.lines < old.lines:
        raise OptionError(
            f"'{path}' has {index.lines} lines, and had {old.lines} when this folder was begun; {_REMEDY}"
        )
    return index


def _close_shard(index: Index, digest: Any, path: Path, old: Index | None) -> None:
    index.digests.append(digest.hexdigest()[:32])
    number = len(index.digests) - 1
    if old is not None and (number + 1) * SHARD <= old.lines and index.lines == (number + 1) * SHARD:
        _compare(old, number, index.digests[number], path)


def _compare(old: Index, number: int, digest: str, path: Path) -> None:
    if old.digests[number] != digest:
        first, last = number * SHARD + 1, min((number + 1) * SHARD, old.lines)
        raise OptionError(
            f"'{path}' is not what this folder was begun with: among lines {first} to {last} one has changed; {_REMEDY}"
        )


def _as_text(path: Path, folder: Path) -> Path:
    with open_input(path, error=OptionError) as file:
        if not is_gzip(file):
            return path
        text = folder / _UNPACKED
        with atomic_write(text, overwrite=True) as temporary, temporary.open("wb") as out:
            try:
                for piece in unpacked_pieces(file):
                    out.write(piece)
            except Malformed as error:
                raise OptionError(f"'{path}' {error}.") from error
        return text


def _read_index(folder: Path) -> Index | None:
    path = folder / _INDEX
    if not is_file(path, error=OptionError):
        return None
    try:
        value = read_json(path, error=OptionError, limit=check_input(path, error=OptionError))
        index = Index(**value)
        index.repeated = {int(line): first for line, first in index.repeated.items()}
        return index
    except (MobileOError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"'{path}' is damaged; remove it, and all lines are checked again.") from error
