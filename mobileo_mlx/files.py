"""Reading files that others wrote, and writing files and folders that are there whole or not at all.

What is written goes to a temporary name beside the target and is renamed at the end. So a full disk, a bug or
Ctrl-C never leaves half a file, and never costs the file that was there before.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, MobileOError, OutputError

# Left behind only when the process is killed outright; the leading dot keeps it out of listings and globs.
TEMPORARY_PREFIX = ".mobileo-unfinished-"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = "No space left on device"  # in the bare exception of tokenizers, which writes in native code
_MAX_JSON = 2**27  # bytes; the largest that is read is the list of a model's shards


def check_input(path: str | Path, *, error: type[MobileOError] = CheckpointError) -> int:
    """Says before it is opened whether there is a file: reading a pipe or a device might never end.

    Args:
        path: of the file.
        error: what is raised.

    Returns:
        its size in bytes.

    Raises:
        CheckpointError, or what `error` is: it is missing, or not a regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"'{path}' can't be read ({getattr(problem, 'strerror', None) or problem}).") from problem
    if not stat.S_ISREG(status.st_mode):
        raise error(f"'{path}' is not a regular file; put the file itself there.")
    return status.st_size


def read_json(
    path: Path, *, error: type[MobileOError] = CheckpointError, remedy: str = "download it again"
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: of the file.
        error: what is raised.
        remedy: for a damaged file, the end of the sentence.

    Raises:
        CheckpointError, or what `error` is: see `check_input`; or it is too large, not UTF-8, not JSON, or something
            else than an object.
    """
    if check_input(path, error=error) > _MAX_JSON:
        raise error(f"'{path}' is too large for what it should hold; {remedy}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"'{path}' can't be read ({problem.strerror or problem}).") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"'{path}' is not valid JSON ({problem}); {remedy}.") from problem
    if not isinstance(value, dict):
        raise error(f"'{path}' does not hold a JSON object; {remedy}.")
    return value


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Says early whether a file can be written, before minutes are spent on its content.

    Returns:
        the path, absolute, with symbolic links resolved.

    Raises:
        OutputError: the file exists and `overwrite` is False; it is a folder or a device; or its folder is
            missing or not writable.
    """
    target = _resolve(path)
    if target.is_dir():
        raise OutputError(f"'{path}' is a folder; name a file in it.")
    _check_parent(target, path)
    if target.exists():
        # Renaming a file onto a device such as /dev/null would replace the device.
        if not target.is_file():
            raise OutputError(f"'{path}' is not a regular file; choose another name.")
        if not overwrite:
            raise OutputError(f"'{path}' exists already; choose another name, or remove it first.")
    return target


def check_output_folder(path: str | Path) -> Path:
    """Says early whether a new folder can be written.

    Returns:
        the path, absolute, with symbolic links resolved.

    Raises:
        OutputError: there is a file, or a folder that is not empty, of this name, or the folder around it is
            missing or not writable.
    """
    target = _resolve(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"'{path}' is a file; choose another name for the folder.")
    try:
        occupied = target.is_dir() and any(target.iterdir())
    except OSError as error:
        raise _output_error(error, path) from error
    if occupied:
        raise OutputError(f"'{path}' exists already and is not empty; choose another name, or remove it first.")
    _check_parent(target, path)
    return target


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix, and renames it to `path` on success.

    The body creates the temporary file. If it raises anything, KeyboardInterrupt included, that file is
    removed, and a file that had the name before is untouched.

    Raises:
        OutputError: see `check_output`; the disk is full; or the writing fails in another way.
    """
    target = check_output(path, overwrite=overwrite)
    temporary = _temporary(target, target.suffix)
    try:
        yield temporary
        # Somebody else may have taken the name meanwhile.
        if not overwrite and target.exists():
            raise OutputError(f"'{path}' exists already; choose another name, or remove it first.")
        os.replace(temporary, target)
    except Exception as error:
        if _is_write_error(error, temporary):
            raise _output_error(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `path` and renames it to `path` on success.

    If the body raises anything, KeyboardInterrupt included, the temporary folder is removed with all in it.

    Raises:
        OutputError: see `check_output_folder`; the disk is full; or the writing fails in another way.
    """
    target = check_output_folder(path)
    temporary = _temporary(target, "")
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, target)
    except Exception as error:
        if _is_write_error(error, temporary):
            raise _output_error(error, path) from error
        raise
    finally:
        # After success there is nothing of this name. What can't be removed must not hide the first error.
        shutil.rmtree(temporary, ignore_errors=True)


def without_home(text: str) -> str:
    """With ~ for the user's folder, for what is shown to others: its name often is the user's."""
    try:
        home = str(Path.home())
    except RuntimeError:  # there is none
        return text
    return text.replace(home, "~") if len(home) > 1 else text


def _resolve(path: str | Path) -> Path:
    target = Path(os.path.realpath(path))
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # `_check_parent` says which folder is missing
    except OSError as error:  # the name is too long, or a folder on the way is closed to us
        raise _output_error(error, path) from error
    return target


def _check_parent(target: Path, path: str | Path) -> None:
    parent = target.parent
    if not parent.is_dir():
        raise OutputError(f"'{path}' can't be written: there is no folder '{parent}'; make it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"'{path}' can't be written: the folder '{parent}' is not writable; choose another folder.")


def _temporary(target: Path, suffix: str) -> Path:
    # The suffix stays because some writers choose the format by it, or append it when it is missing.
    return target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{suffix}"


def _is_write_error(error: Exception, temporary: Path) -> bool:
    """Whether `error` is about writing, and not about a file that the body was reading, or a bug."""
    if not isinstance(error, OSError):
        return _FULL_TEXT in str(error)
    if error.errno in _FULL or error.filename is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name) == temporary or temporary in Path(name).parents


def _output_error(error: Exception, path: str | Path) -> OutputError:
    if isinstance(error, OSError) and error.errno not in _FULL:
        return OutputError(f"'{path}' can't be written ({error.strerror or error}); choose another name or folder.")
    return OutputError(f"'{path}' can't be written: the disk is full; free some space, or choose another disk.")
