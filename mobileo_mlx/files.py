"""Reading what others wrote: paths, files and JSON, of which nothing can be taken for granted.

The only place where the library or the command asks about a path that a user or a file names, opens it, or parses JSON
of others. Nothing here waits for a pipe or a device that never ends, or reads without a limit.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .errors import CheckpointError, MobileOError

Kind = Literal["file", "folder", "other", ""]

MAX_JSON = 2**24  # bytes; the largest that is read, the list of a model's shards, has a hundredth
_MAX_DEPTH = 100  # of JSON; a configuration has 5
_MAX_DIGITS = 300  # of a whole number: what a float can hold, and tokenizers' 10**30 for "any length"
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # how a shell names the pipe of <(command)


class JSONError(ValueError):
    """Text that is no JSON, or JSON that nobody needs; the message goes on after the name of what holds it."""


def expand(path: str | Path) -> Path:
    """With the user's folder for ~, and another's for ~name; as it is where there is no such user, as in a shell."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a NUL in the user's name
        return Path(path)


def absolute(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> str:
    """From the root of the file system, without `..`; links stay as they are.

    Raises:
        CheckpointError, or what `error` is: the path is relative, and the working directory was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError as problem:
        raise error(f"'{path}' can't be found: the working directory was removed; change to another one.") from problem


def kind_of(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> Kind:
    """What a path leads to: "" where there is nothing, "other" for a pipe, a device or a socket.

    Args:
        path: its ~ is not expanded.
        error: what is raised.

    Raises:
        CheckpointError, or what `error` is: the system does not say: a folder on the way is closed to this user, the
            name is too long or holds a NUL, links go round in a circle.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as problem:
        raise error(f"'{path}' can't be read ({_reason(problem)}).") from problem
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def is_file(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> bool:
    """Whether a path leads to a regular file; raises as `kind_of` does."""
    return kind_of(path, error=error) == "file"


def is_folder(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> bool:
    """Whether a path leads to a folder; raises as `kind_of` does."""
    return kind_of(path, error=error) == "folder"


def check_input(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> int:
    """Says before a library opens it whether there is a file.

    Args:
        path: of the file.
        error: what is raised.

    Returns:
        its size in bytes.

    Raises:
        CheckpointError, or what `error` is: it is missing, not a regular file, or may not be read.
    """
    with open_input(path, error=error) as file:
        return os.fstat(file.fileno()).st_size


def open_input(path: str | Path, *, error: type[MobileOError] = CheckpointError, pipes: bool = False) -> BinaryIO:
    """Opens a regular file for reading, and never waits for one that is none: a pipe or a device might never end.

    Args:
        path: of the file.
        error: what is raised.
        pipes: whether a pipe that a shell hands over, <(command), may be read too.

    Raises:
        CheckpointError, or what `error` is: it is missing, not a regular file, or may not be read.
    """
    try:
        handed_over = pipes and str(path).startswith(_HANDED_OVER)
        # Without waiting for somebody to write into a named pipe; what was opened is looked at, not what had the name.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if handed_over else os.O_NONBLOCK))
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"'{path}' can't be read ({_reason(problem)}).") from problem
    if not (stat.S_ISREG(mode) or (handed_over and stat.S_ISFIFO(mode))):
        os.close(descriptor)
        raise error(f"'{path}' is not a regular file; put the file itself there.")
    return os.fdopen(descriptor, "rb")


def read_limited(stream: BinaryIO, limit: int, name: str, *, error: type[MobileOError] = CheckpointError) -> bytes:
    """All of a stream, which may have no end.

    Args:
        stream: read to its end, or to the limit.
        limit: in bytes.
        name: at the beginning of the error's sentence.
        error: what is raised.

    Raises:
        CheckpointError, or what `error` is: there is more than `limit`, or reading fails.
    """
    try:
        data = stream.read(limit + 1)
    except (OSError, ValueError) as problem:
        raise error(f"{name} can't be read ({_reason(problem)}).") from problem
    if data is None:  # some files of the system, such as /proc/kmsg, wait for what will be written into them
        raise error(f"{name} can't be read: it holds nothing yet.")
    if len(data) > limit:
        raise _too_large(name, limit, error)
    return data


def read_bytes(
    path: str | Path, *, limit: int, error: type[MobileOError] = CheckpointError, pipes: bool = False
) -> bytes:
    """The content of a regular file of at most `limit` bytes; raises as `open_input` and `read_limited` do."""
    with open_input(path, error=error, pipes=pipes) as file:
        if os.fstat(file.fileno()).st_size > limit:  # known before anything is read
            raise _too_large(f"'{path}'", limit, error)
        return read_limited(file, limit, f"'{path}'", error=error)


def read_text(path: str | Path, *, limit: int, error: type[MobileOError] = CheckpointError, pipes: bool = False) -> str:
    """The same as text, without a byte order mark.

    Raises:
        CheckpointError, or what `error` is: see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit=limit, error=error, pipes=pipes).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"'{path}' is not UTF-8 text; save it as UTF-8.") from problem


def parse_json(data: str | bytes, *, surrogates: bool = False) -> Any:
    """The value of a JSON text, of which numbers are finite, depth is limited, and all text can be encoded.

    Args:
        data: the text, or its bytes in UTF-8; a byte order mark is passed over.
        surrogates: whether text may hold halves of a pair, as odd names of files do.

    Raises:
        JSONError: see there.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text.removeprefix("\ufeff"), parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_constant
        )
    except UnicodeDecodeError as problem:
        raise JSONError("is not UTF-8 text") from problem
    except json.JSONDecodeError as problem:
        raise JSONError(
            f"is not JSON ({problem.msg.removesuffix(' at')} at line {problem.lineno}, column {problem.colno})"
        ) from problem
    except RecursionError as problem:
        raise JSONError("nests too deeply") from problem
    except MemoryError as problem:
        raise JSONError("is too large") from problem
    # Each level takes a bracket, and half a pair an escape: nearly all JSON needs no second look.
    if text.count("[") + text.count("{") > _MAX_DEPTH and _nests_deeply(value):
        raise JSONError("nests too deeply")
    if not surrogates and _HALF_PAIR.search(text):
        for inside in _walk(value):
            if isinstance(inside, str) and not _is_encodable(inside):
                raise JSONError("holds half a surrogate pair, which is no text")
    return value


def read_json(
    path: str | Path,
    *,
    error: type[MobileOError] = CheckpointError,
    remedy: str = "download it again",
    limit: int = MAX_JSON,
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: of the file.
        error: what is raised.
        remedy: for a damaged file, the end of the sentence.
        limit: of its size, in bytes.

    Raises:
        CheckpointError, or what `error` is: see `read_bytes` and `parse_json`; or it is something else than an object.
    """
    data = read_bytes(path, limit=limit, error=error)
    try:
        value = parse_json(data)
    except JSONError as problem:
        raise error(f"'{path}' {problem}; {remedy}.") from problem
    if not isinstance(value, dict):
        raise error(f"'{path}' does not hold a JSON object; {remedy}.")
    return value


def without_home(text: str) -> str:
    """With ~ for the user's folder, for what is shown to others: its name often is the user's."""
    try:
        home = str(Path.home())
    except RuntimeError:  # there is none
        return text
    return text.replace(home, "~") if len(home) > 1 else text


def _too_large(name: str, limit: int, error: type[MobileOError]) -> MobileOError:
    return error(f"{name} is too large for what it should hold: more than {limit:,} bytes.")


def _reason(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem)


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise JSONError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JSONError(f"holds a number that is too large, {digits[:20]}")
    return value


def _parse_constant(name: str) -> float:
    raise JSONError(f"holds {name}, which JSON does not have")


def _nests_deeply(value: Any) -> bool:
    """Whether something is `_MAX_DEPTH` levels down; a level at a time, for a tokenizer has 150,000 lists."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        level = [
            inside
            for outer in level
            for inside in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inside, dict | list)
        ]
        if not level:
            return False
    return True


def _walk(value: Any) -> Iterator[Any]:
    """All that a JSON value holds, keys too; with no more memory than it is deep."""
    open_iterators = [iter((value,))]
    while open_iterators:
        for inside in open_iterators[-1]:
            yield inside
            if isinstance(inside, dict):
                yield from inside
                open_iterators.append(iter(inside.values()))
                break
            if isinstance(inside, list):
                open_iterators.append(iter(inside))
                break
        else:
            open_iterators.pop()


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
