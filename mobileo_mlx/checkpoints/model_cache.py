"""The models on this machine: the bundled ones and those in the hub's cache. Listed, verified, found and removed.

The cache belongs to `huggingface_hub` and to all programs that use it: it says what is there, and removes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, MobileOError, OutputError
from ..files import expand, is_file, is_folder, parse_json, read_bytes, read_json
from ..models.mobileo import COMPONENTS
from . import hub, hub_download, turbo
from .checkpoint import Checkpoint
from .tensor_files import read_header


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    name: str  # as `hub.find` takes it
    revision: str  # the commit; "" of one that is bundled, or of which nothing whole has arrived
    state: Literal["bundled", "cached", "incomplete"]
    nbytes: int  # on disk; of what models share, in each
    folder: Path

    @property
    def turbo(self) -> bool:
        """Whether it brings a few-step adapter along."""
        return turbo.is_there(self.folder)


@dataclass(frozen=True)
class VerifiedFile:
    """What was found out about a file of a model."""

    name: str  # in the model's folder; "" for what concerns the whole of it
    nbytes: int
    compared: str  # with what: "checksum", "format", or ""
    problem: str  # a clause; "" where there is none


@dataclass(frozen=True)
class Removal:
    """What is going to be removed."""

    name: str
    revisions: tuple[str, ...]  # commits
    nbytes: int  # that become free
    folder: Path  # of the repository in the cache
    execute: Callable[[], None]  # removes it; raises OutputError where something stays


def list_models(cache: Path | None = None) -> list[LocalModel]:
    """The bundled models, and Mobile-O's in the cache, the parts of broken downloads with them.

    Args:
        cache: as for `hub.find`.
    """
    from mobileo_weights import bundled

    cache = cache or hub.default_cache()
    found = [LocalModel(name, "", "bundled", _size(folder), folder) for name, folder in bundled().items()]
    cache = cache.resolve()  # as the paths of the scan are
    for repo in sorted(_scan(cache), key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda one: ("main" not in one.refs, *sorted(one.refs))):
            name = _name(repo.repo_id, revision)
            folder = hub.cached_state(name, cache)[1]
            if _is_mobileo(folder or revision.snapshot_path):
                whole: Literal["cached", "incomplete"] = "cached" if folder is not None else "incomplete"
                where = folder or Path(revision.snapshot_path)
                found.append(LocalModel(name, revision.commit_hash, whole, revision.size_on_disk, where))
    # Broken downloads, and what lacks data.
    listed = {hub_download.store(one.name.partition("@")[0], cache) for one in found}
    for path in sorted(set(cache.glob("models--*")) - listed):
        if any(path.glob(f"blobs/*{hub_download.PARTIAL}")) or any(map(_is_mobileo, path.glob("snapshots/*"))):
            name = path.name.removeprefix("models--").replace("--", "/")
            found.append(LocalModel(name, "", "incomplete", _size(path), path))
    return found


def locate(name: str, cache: Path | None = None) -> Path:
    """The folder of a model that is on this machine. No network is used.

    Raises:
        CheckpointError: it is not, or not whole.
    """
    if _is_local(name):
        return hub.find(name)
    folder = hub.cached_state(name, cache or hub.default_cache())[1]
    if folder is None:
        raise CheckpointError(f"'{name}' is not on this machine, or not whole: run `mobileo-mlx models pull {name}`.")
    return folder


def is_cached(name: str, cache: Path | None = None) -> bool:
    """Whether something of a model lies in the hub's cache, where it was downloaded."""
    return not _is_local(name) and hub_download.snapshot(name, cache or hub.default_cache()) is not None


def verify(name: str, cache: Path | None = None) -> Iterator[VerifiedFile]:
    """Compares the files of a model with the checksums that the cache knows, and reads the headers of tensors.

    Args:
        name: a bundled name, a folder, or a repository in the cache.
        cache: as for `hub.find`.

    Yields:
        each file when it is read, and last the model as a whole: its configuration against its tensors.

    Raises:
        CheckpointError: nothing of it is on this machine.
    """
    root = hub.find(name) if _is_local(name) else hub_download.snapshot(name, cache or hub.default_cache())
    if root is None:
        raise CheckpointError(f"'{name}' is not on this machine: run `mobileo-mlx models pull {name}`.")
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield _verified(path, str(path.relative_to(root)))
    problem = ""
    try:
        folder = hub.model_folder(root)
        checkpoint = Checkpoint.open(folder)
        checkpoint.check(*filter(checkpoint.has, COMPONENTS))
        turbo.find(checkpoint)
        nbytes = _size(folder)
    except MobileOError as error:
        problem, nbytes = str(error).rstrip("."), 0
    yield VerifiedFile("", nbytes, "format", problem)


def plan_removal(name: str, cache: Path | None = None) -> Removal:
    """What is to be removed from the cache for a name: with a revision that one alone, otherwise all of them.

    Raises:
        CheckpointError: it is no name in the cache, or another process is downloading it.
    """
    cache = cache or hub.default_cache()
    if _is_local(name) or (split := hub_download.split_name(name)) is None:
        raise CheckpointError(f"'{name}' is not in the cache of the hub, and only what is there is removed.")
    repo, revision = split
    folder = hub_download.store(repo, cache)
    snapshot = hub_download.snapshot(name, cache)
    if not is_folder(folder) or ("@" in name and snapshot is None):
        raise CheckpointError(f"'{name}' is not in the cache; `mobileo-mlx models list` shows what is.")
    if hub_download.is_busy(repo, cache):
        raise CheckpointError(f"'{repo}' is being downloaded by another process; wait for it to end.")
    scanned = next((one for one in _scan(cache) if Path(one.repo_path) == folder.resolve()), None)
    commits = {one.commit_hash for one in scanned.revisions} if scanned is not None else set()
    wanted = {snapshot.name} if "@" in name and snapshot is not None else commits
    if wanted == commits:
        # With what has only arrived in part, and is of no revision yet.
        return Removal(name, tuple(sorted(wanted)), _size(folder), folder, lambda: _remove_folder(folder))
    if not wanted <= commits:
        raise CheckpointError(
            f"'{repo}' is damaged in the cache, so that '{revision}' can't be told from its rest; remove '{repo}'."
        )
    from huggingface_hub import scan_cache_dir

    strategy = scan_cache_dir(cache).delete_revisions(*wanted)

    def execute() -> None:
        strategy.execute()
        if left := [one for one in wanted if (folder / "snapshots" / one).exists()]:
            raise OutputError(f"'{folder / 'snapshots' / left[0]}' can't be removed; look at its permissions.")

    return Removal(name, tuple(sorted(wanted)), strategy.expected_freed_size, folder, execute)


def _is_local(name: str) -> bool:
    from mobileo_weights import bundled

    return name in bundled() or is_folder(expand(name))


def _scan(cache: Path) -> list[Any]:
    """The repositories of models in the cache, as `huggingface_hub` describes them; not those that are damaged."""
    from huggingface_hub import scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir(cache).repos if repo.repo_type == "model"] if is_folder(cache) else []
    except OSError as error:
        raise CheckpointError(f"the cache '{cache}' can't be read ({error.strerror or error}).") from error


def _name(repo: str, revision: Any) -> str:
    refs = sorted(revision.refs)
    return repo if "main" in refs else f"{repo}@{refs[0] if refs else revision.commit_hash}"


def _is_mobileo(folder: Path) -> bool:
    for path in (folder, *sorted(folder.glob(hub.SUBFOLDER))):
        try:
            if is_file(path / "config.json"):
                config = read_json(path / "config.json")
                kind = str(config.get("model_type"))
                return config.get("format") == hub.OUR_FORMAT or kind.startswith("mobileo")
        except CheckpointError:
            continue
    return False


def _verified(path: Path, name: str) -> VerifiedFile:
    compared = ""
    try:
        if not path.exists():
            return VerifiedFile(name, 0, "", "its data are gone")
        nbytes = path.stat().st_size
        recorded = Path(os.readlink(path)).name if path.is_symlink() else ""
        found = hub_download.checksum(path, recorded)
        if found is not None:
            compared = "checksum"
            if found != recorded:
                return VerifiedFile(name, nbytes, compared, "is not what the hub has: its checksum is another one")
        if path.suffix == ".safetensors":
            compared = compared or "format"
            read_header(path)
        elif path.suffix == ".json":
            compared = compared or "format"
            parse_json(read_bytes(path, limit=2**28))
        return VerifiedFile(name, nbytes, compared, "")
    except (OSError, ValueError, MobileOError) as error:
        return VerifiedFile(name, 0, compared, str(error).rstrip("."))


def _size(folder: Path) -> int:
    """The bytes of all files, of links those that they lead to unless these lie in the folder, too."""
    real = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in real)


def _remove_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"not all of '{folder}' can be removed ({error.strerror}).") from error
