"""Writing files and folders that are there whole or not at all.

What is written goes to a temporary name beside the target, is flushed to the disk, and renamed at the end. So a full
disk, a bug, Ctrl-C or a power cut never leaves half a file, and never costs the file that was there before.

What a killed process leaves unfinished is removed by the next one that writes into the same folder: a process holds the
lock of what it is writing, and the system gives it back when the process ends.
"""

from __future__ import annotations

import errno
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ExistsError, OutputError
from .files import absolute, expand, is_file, is_folder, kind_of
from .locks import lock

TEMPORARY_PREFIX = ".mobileo-unfinished-"  # the leading dot keeps it out of listings and globs

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = "No space left on device"  # in the bare exception of tokenizers, which writes in native code
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}

_cleaned: set[Path] = set()  # folders in which this process has removed what others left


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Says early whether a file can be written, before minutes are spent on its content.

    Returns:
        the path, absolute, with symbolic links resolved.

    Raises:
        ExistsError: the file exists and `overwrite` is False.
        OutputError: it is a folder or a device; or its folder is missing or not writable.
    """
    target = _resolve(path)
    kind = kind_of(target, error=OutputError)
    if kind == "folder":
        raise OutputError(f"'{path}' is a folder; name a file in it.")
    _check_parent(target, path)
    # Renaming a file onto a device such as /dev/null would replace the device.
    if kind == "other":
        raise OutputError(f"'{path}' is not a regular file; choose another name.")
    if kind == "file" and not overwrite:
        raise _exists(path)
    return target


def check_output_folder(path: str | Path) -> Path:
    """Says early whether a new folder can be written.

    Returns:
        the path, absolute, with symbolic links resolved.

    Raises:
        ExistsError: there is a folder of this name that is not empty.
        OutputError: there is a file of this name, or the folder around it is missing or not writable.
    """
    target = _resolve(path)
    kind = kind_of(target, error=OutputError)
    if kind in ("file", "other"):
        raise OutputError(f"'{path}' is a file; choose another name for the folder.")
    try:
        occupied = kind == "folder" and any(target.iterdir())
    except OSError as error:
        raise output_error(error, path) from error
    if occupied:
        raise _folder_exists(path)
    _check_parent(target, path)
    return target


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix, and renames it to `path` on success.

    The temporary file exists and is empty. If the body raises anything, KeyboardInterrupt included, it is removed, and
    a file that had the name before is untouched. A file that is replaced leaves its permissions to the new one.

    Raises:
        ExistsError: see `check_output`; or another process took the name meanwhile.
        OutputError: see `check_output`; the disk is full; or the writing fails in another way.
    """
    target = check_output(path, overwrite=overwrite)
    _clean_once(target.parent)
    temporary, descriptor = None, -1
    try:
        # The suffix stays because some writers choose the format by it, or append it when it is missing.
        temporary, descriptor = _create(target.parent, target.suffix, folder=False)
        mode = os.fstat(descriptor).st_mode & 0o777
        yield temporary
        replaces = overwrite and is_file(target, error=OutputError)
        with suppress(OSError):  # some file systems have no permissions; and some writers have their own idea of them
            os.chmod(temporary, target.stat().st_mode & 0o777 if replaces else mode)
        _flush(temporary)
        if overwrite:
            os.replace(temporary, target)
        else:
            _claim(temporary, target, path)
        _flush(target.parent)
    except Exception as error:
        if _is_write_error(error, temporary):
            raise output_error(error, path) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


def add_name(source: str | Path, path: str | Path) -> None:
    """Gives a finished file a second name; where the file system has no links, that is a copy of it.

    Nothing is done where it has that name already.

    Raises:
        ExistsError: another file has the name.
        OutputError: see `check_output`; the disk is full; or the linking fails in another way.
    """
    target = check_output(path, overwrite=True)
    try:
        if is_file(target, error=OutputError):
            if not (os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)):
                raise _exists(path)
            return
        try:
            os.link(source, target)
        except OSError:
            # Another process may have been faster, and has given it the same name.
            with suppress(ExistsError), atomic_write(path) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise output_error(error, path) from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `path` and renames it to `path` on success.

    If the body raises anything, KeyboardInterrupt included, the temporary folder is removed with all in it.

    Raises:
        ExistsError: see `check_output_folder`; or another process took the name meanwhile.
        OutputError: see `check_output_folder`; the disk is full; or the writing fails in another way.
    """
    target = check_output_folder(path)
    _clean_once(target.parent)
    temporary, descriptor = None, -1
    try:
        temporary, descriptor = _create(target.parent, "", folder=True)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))
        os.replace(temporary, target)
        _flush(target.parent)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OCCUPIED:
            raise _folder_exists(path) from error
        if _is_write_error(error, temporary):
            raise output_error(error, path) from error
        raise
    finally:
        if temporary is not None:
            # After success there is nothing of this name. What can't be removed must not hide the first error.
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


def remove_unfinished(folder: str | Path) -> None:
    """Removes what processes that were killed left unfinished in a folder, as far as that can be told and done."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):
                _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if lock(descriptor):
                _remove(Path(path))
        finally:
            os.close(descriptor)


def _clean_once(folder: Path) -> None:
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_unfinished(folder)


def _create(parent: Path, suffix: str, *, folder: bool) -> tuple[Path, int]:
    """A new temporary file or folder, and a descriptor of it that holds its lock."""
    while True:
        path = parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{suffix}"
        try:
            if folder:
                path.mkdir()
            else:
                path.touch(exist_ok=False)
            # Before it is locked another process may take it for abandoned.
            with suppress(FileNotFoundError):
                descriptor = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | os.O_CLOEXEC)
                if lock(descriptor) is not False and _is_at(descriptor, path):
                    return path, descriptor
                os.close(descriptor)
        except KeyboardInterrupt:  # nobody else knows the name yet
            _remove(path)
            raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _claim(temporary: Path, target: Path, path: str | Path) -> None:
    """Gives a finished file a name, which must be free.

    Raises:
        ExistsError: it is not.
    """
    try:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: an empty file takes the name first
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
            os.replace(temporary, target)
    except FileExistsError as error:
        raise _exists(path) from error


def _flush(path: Path) -> None:
    """Writes a file, or a folder's names, to the disk; a disk that is full may show only here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):  # not here, or not of folders
            raise
    finally:
        os.close(descriptor)


def _resolve(path: str | Path) -> Path:
    absolute(expand(path), error=OutputError)
    try:
        target = Path(os.path.realpath(expand(path)))  # which follows links, so it has to begin with the path as it is
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # `_check_parent` says which folder is missing
    except (OSError, ValueError) as error:  # the name is too long or holds a NUL, or a folder on the way is closed
        raise output_error(error, path) from error
    return target


def _check_parent(target: Path, path: str | Path) -> None:
    parent = target.parent
    if not is_folder(parent, error=OutputError):
        raise OutputError(f"'{path}' can't be written: there is no folder '{parent}'; make it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"'{path}' can't be written: the folder '{parent}' is not writable; choose another folder.")


def _exists(path: str | Path) -> ExistsError:
    return ExistsError(f"'{path}' exists already; choose another name, or remove it first.")


def _folder_exists(path: str | Path) -> ExistsError:
    return ExistsError(f"'{path}' exists already and is not empty; choose another name, or remove it first.")


def _is_write_error(error: Exception, temporary: Path | None) -> bool:
    """Whether `error` is about writing, and not about a file that the body was reading, or a bug."""
    if not isinstance(error, OSError):
        return _FULL_TEXT in str(error)
    if error.errno in _FULL or error.filename is None or temporary is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name) == temporary or temporary in Path(name).parents


def output_error(error: Exception, path: str | Path) -> OutputError:
    """What is raised where writing `path` fails with `error`."""
    if getattr(error, "errno", errno.ENOSPC) in _FULL and not isinstance(error, ValueError):
        return OutputError(f"'{path}' can't be written: the disk is full; free some space, or choose another disk.")
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"'{path}' can't be written ({reason}); choose another name or folder.")
