"""Files and folders that are there whole or not at all.

What is written goes to a temporary name beside the target and is renamed at the end. So a full disk, a bug or
Ctrl-C never leaves half a file, and never costs the file that was there before.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

# Left behind only when the process is killed outright; the leading dot keeps it out of listings and globs.
TEMPORARY_PREFIX = ".mobileo-unfinished-"

_FULL = {errno.ENOSPC, errno.EDQUOT}
# mlx, safetensors and tokenizers write in native code and report a failed write as an error of their own.
_NATIVE_WRITE_FAILURES = (
    "[write] Unable to write",
    "[save_safetensors] Failed to open",
    "No space left on device",
)


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
        raise _output_error(error, path, target.parent) from error
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
            raise _output_error(error, path, target.parent) from error
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
            raise _output_error(error, path, target.parent) from error
        raise
    finally:
        # After success there is nothing of this name. What can't be removed must not hide the first error.
        shutil.rmtree(temporary, ignore_errors=True)


def _resolve(path: str | Path) -> Path:
    target = Path(os.path.realpath(path))
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # `_check_parent` says which folder is missing
    except OSError as error:  # the name is too long, or a folder on the way is closed to us
        raise _output_error(error, path, target.parent) from error
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
        return any(text in str(error) for text in _NATIVE_WRITE_FAILURES)
    if error.errno in _FULL or error.filename is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name) == temporary or temporary in Path(name).parents


def _output_error(error: Exception, path: str | Path, folder: Path) -> OutputError:
    if isinstance(error, OSError):
        full, reason = error.errno in _FULL, error.strerror or str(error)
    else:
        # Native writers lose the reason; a file that filled the disk is still there to be seen.
        full, reason = shutil.disk_usage(folder).free < 1 << 20, str(error)
        full = full or "No space left" in reason
    if full:
        return OutputError(f"'{path}' can't be written: the disk is full; free some space, or choose another disk.")
    return OutputError(f"'{path}' can't be written ({reason}); choose another name or folder.")
