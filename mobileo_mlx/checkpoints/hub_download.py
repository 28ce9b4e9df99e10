"""Files of a repository on the hub, downloaded into the cache of `huggingface_hub`, which all other programs share.

A download can be broken off at any moment and goes on where it stopped: that package throws away what an interrupted
one left. Requests, credentials and addresses are its affair. What arrives is compared with the checksum that the hub
names. One process downloads a repository at a time, and others wait for it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from ..errors import CheckpointError, DownloadError
from ..files import is_folder, read_text
from ..locks import lock

COMMIT = re.compile(r"[0-9a-f]{40}")
PARTIAL = ".mobileo-mlx.part"  # how the name of a file ends that has not arrived yet

_NAME = re.compile(r"(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(\w[\w./-]{0,199}))?", re.ASCII)
_PART = re.compile(r"\w[\w.-]{0,127}", re.ASCII)  # of a path, named by others
_SHA1, _SHA256 = COMMIT, re.compile(r"[0-9a-f]{64}")
_TIMEOUT = 10  # seconds, for an answer
_PASSING = (408, 429, 500, 502, 503, 504)  # states of a server that may be others soon
_PAUSES = (1, 2, 4, 8, 8)  # seconds between attempts, as huggingface_hub has them
_LONGEST_PAUSE = 300  # seconds that a server may ask for
_WAYS = "give a model's folder (`--model FOLDER`), or write a small untrained one (`mobileo-mlx random-model DIR`)"

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


def split_name(name: str) -> tuple[str, str] | None:
    """The repository and the revision that a text names, "main" where it names none; None where it is no such name.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.
    """
    found = _NAME.fullmatch(name)
    if found is None or ".." in name or "--" in found[1]:
        return None
    return found[1], found[2] or "main"


def store(repo: str, cache: Path) -> Path:
    """The folder of a repository in the cache."""
    return cache / f"models--{repo.replace('/', '--')}"


def snapshot(name: str, cache: Path) -> Path | None:
    """The folder of a revision in the cache, of which any file may be missing; None where there is none.

    Raises:
        CheckpointError: the cache is closed to this user.
    """
    if (found := split_name(name)) is None:
        return None
    folder = store(found[0], cache)
    commit = found[1]
    with suppress(CheckpointError):
        commit = read_text(folder / "refs" / commit, limit=1000).strip()
    if _PART.fullmatch(commit) is None:
        return None
    path = folder / "snapshots" / commit
    return path if is_folder(path) else None


def check_online(name: str, *, ways: str = _WAYS) -> None:
    """Says so where HF_HUB_OFFLINE forbids a download.

    Args:
        name: see `split_name`.
        ways: to do without, for the error.

    Raises:
        DownloadError: it does.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"'{name}' is not cached, and HF_HUB_OFFLINE forbids to download it: unset it, or {ways}.")


def download(
    name: str,
    choose: Callable[[list[str]], Sequence[str]],
    there: Callable[[], Path | None],
    *,
    progress: bool = False,
    endpoint: str | None = None,
    cache: Path,
    ways: str = _WAYS,
) -> Path:
    """Downloads files of one commit, as far as they are not in the cache.

    Args:
        name: see `split_name`.
        choose: takes the names of all files, and returns those that are wanted, in order. Its errors pass through.
        there: looks for them in the cache. It is asked when no other process downloads the repository.
        progress: whether bars are drawn on standard error.
        endpoint: the hub's address; by default that of `huggingface_hub`, which reads HF_ENDPOINT.
        cache: the hub's, or one of its form.
        ways: to do without, for errors.

    Returns:
        what `there` finds, or the folder of that commit in the cache, which is noted as that of the revision when all
        files are in it.

    Raises:
        DownloadError: the repository can't be reached, does not exist, asks for a licence or another token; a file
            arrives damaged; the disk is full.
        CheckpointError: the repository names files outside of itself.
    """
    from huggingface_hub import HfApi

    repo, revision = split_name(name) or (name, "main")
    try:
        with _turn(repo, cache) as locked, _bars(progress):
            if (folder := there()) is not None:  # another process has downloaded it meanwhile
                return folder
            asked = None if revision == "main" else revision
            info = _patiently(lambda: HfApi(endpoint=endpoint).model_info(repo, revision=asked, timeout=_TIMEOUT))
            commit = info.sha or ""
            if COMMIT.fullmatch(commit) is None:
                raise DownloadError(f"the hub does not say which commit of '{name}' it has; check HF_ENDPOINT.")
            files = choose(_checked([file.rfilename for file in info.siblings or ()], name))
            root = store(repo, cache)
            folder = root / "snapshots" / commit
            for file in files:
                if not (folder / file).exists():
                    _link(_fetch(repo, file, commit, endpoint, root / "blobs", locked=locked), folder / file)
            # Last: while the note is missing which commit is the current one, nothing passes for complete.
            if revision != commit:
                ref = root / "refs" / revision
                if not ref.exists() or ref.read_bytes() != commit.encode():  # nor can all caches be written
                    ref.parent.mkdir(parents=True, exist_ok=True)
                    ref.write_text(commit, encoding="utf-8")
            return folder
    except CheckpointError:
        raise
    except Exception as error:
        # Not narrower: the hub's client has changed its HTTP library, and with it the errors, more than once.
        raise _download_error(name, error, ways) from error


@contextmanager
def _turn(repo: str, cache: Path) -> Iterator[bool]:
    """Waits until no other process downloads a repository into this cache, and keeps others waiting meanwhile.

    Yields whether it does: not where the file system has no locks, or nothing can be written.
    """
    if (file := _lock_file(repo, cache)) is None:
        yield False  # the download says why nothing can be written
        return
    with file:
        held = lock(file.fileno())
        if held is False:
            _log.warning("'%s' is being downloaded by another process; waiting for it.", repo)
            held = lock(file.fileno(), wait=True)
        yield held is True


def is_busy(repo: str, cache: Path) -> bool:
    """Whether another process is downloading a repository into this cache."""
    if (file := _lock_file(repo, cache)) is None:
        return False
    with file:
        return lock(file.fileno()) is False


def _lock_file(repo: str, cache: Path) -> BinaryIO | None:
    path = cache / ".locks" / store(repo, cache).name / "mobileo-mlx.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError:
        return None


def _checked(files: list[str], name: str) -> list[str]:
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\0" in file or not path.parts:
            raise CheckpointError(f"'{name}' on the hub names a file outside of itself ({file!r}); do not use it.")
    return files


def _fetch(repo: str, file: str, commit: str, endpoint: str | None, blobs: Path, *, locked: bool) -> Path:
    """One file's data in the cache, downloaded where they are not there; goes on with what has arrived before."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, file, revision=commit, endpoint=endpoint)
    found = _patiently(lambda: get_hf_file_metadata(url, timeout=_TIMEOUT))
    etag, size = found.etag, found.size
    if etag is None or _PART.fullmatch(etag) is None:
        raise DownloadError(f"the hub does not say which '{file}' of '{repo}' it has; check HF_ENDPOINT.")
    target = blobs / etag
    if target.exists():
        return target
    headers = build_hf_headers()
    if _host(found.location) != _host(url):
        headers.pop("authorization", None)  # the storage behind the hub has its own key, in the address
    blobs.mkdir(parents=True, exist_ok=True)
    # Two processes that append to one file would ruin it.
    partial = target.with_name(f"{etag}{'' if locked else f'.{os.getpid()}'}{PARTIAL}")
    with partial.open("ab") as part:

        def fetch_rest() -> None:
            done = part.seek(0, os.SEEK_END)
            if done and (size is None or done > size):
                part.seek(0)
                part.truncate(done := 0)
            if not done or done != size:
                http_get(
                    found.location,
                    part,
                    resume_size=done,
                    headers=headers,
                    expected_size=size,
                    displayed_filename=file,
                )
            part.flush()

        _patiently(fetch_rest)
        if checksum(partial, etag) not in (etag, None):
            part.truncate(0)
            raise DownloadError(f"'{file}' of '{repo}' arrived damaged; try again.")
        os.fsync(part.fileno())
        partial.replace(target)
    return target


def checksum(path: Path, like: str) -> str | None:
    """The checksum of a file of the kind that the cache names its data by; None where that is of no known kind.

    Args:
        path: of the file.
        like: such a name: the SHA-256 of large files, and what git calls small ones (the SHA-1 with the length before).
    """
    if _SHA256.fullmatch(like):
        digest = hashlib.sha256()
    elif _SHA1.fullmatch(like):
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return None
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _link(blob: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.unlink()  # a link to data that are gone
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:
        return  # of another process, where there are no locks
    except OSError:  # a file system without links: the data lie in the folder itself, as huggingface_hub has them, too
        shutil.move(blob, path)


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc


def _patiently(request: Callable[[], Result]) -> Result:
    """What a request returns; it is made again where the server is busy, after as long as the server asks for."""
    for pause in _PAUSES:
        try:
            return request()
        except Exception as error:
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            if status not in _PASSING:
                raise
            pause = max(pause, _asked_pause(response))
            if pause > _LONGEST_PAUSE:
                raise
            _log.warning("the hub answers with status %d; the next attempt is in %d s.", status, pause)
            time.sleep(pause)
    return request()


def _asked_pause(response: Any) -> int:
    """The seconds of a Retry-After header; 0 where there is none, or a date."""
    text = str(response.headers.get("Retry-After", "")).strip()
    return int(text) + 1 if text.isascii() and text.isdigit() and len(text) < 10 else 0


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _download_error(name: str, error: Exception, ways: str) -> DownloadError:
    from huggingface_hub import get_token
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"'{name}' asks for a licence to be accepted: accept it on its page on the hub and run `hf auth login`, or "
            f"{ways}."
        )
    # Without a token, the hub answers so about all that it does not show to everybody.
    if status == 401 and get_token():
        return DownloadError(
            f"'{name}' could not be downloaded, because your token is not accepted: run `hf auth login`, or unset "
            f"HF_TOKEN; or {ways}."
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadError(f"'{name}' names a revision that is not on the hub: check what stands behind the @.")
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"'{name}' is neither a folder nor a model on the hub that you may read: check its name, or {ways}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"'{name}' does not fit on the disk: free some space, or set HF_HOME to a folder on a larger one."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return DownloadError(
            f"'{name}' can't be downloaded, because '{error.filename}' is closed to this user ({error.strerror}): set "
            f"HF_HOME to a folder of yours, or {ways}."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return DownloadError(
        f"'{name}' is not cached and could not be downloaded ({reason}): try again with a connection, or {ways}."
    )
