"""Finding a model: a bundled name, a folder, the hub's cache, the hub. In that order.

The cache is the one of `huggingface_hub`, shared with all other programs. A snapshot that is complete is used without
any network access. A download can be broken off at any moment and goes on where it stopped.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..errors import CheckpointError, DownloadError
from ..files import expand, is_folder, read_json
from .tensor_files import weight_files

DEFAULT_MODEL = "Amshaker/Mobile-O-0.5B"
SUBFOLDER = "final_merged_model_*"  # where upstream's training leaves the model
OUR_FORMAT = "mobileo-mlx"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")

_NEEDED = ("*.json", "*.safetensors", "merges.txt")
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# huggingface_hub starts a file from its beginning when it was interrupted by the end of the process. For the few
# files beyond this size that would hurt, so we keep what has arrived; the others are its own affair.
_LARGE = 16_000_000
_TIMEOUT = 10  # seconds
_OFFLINE_WAYS = (
    "give a model's folder (`--model FOLDER`), or write a small untrained one (`mobileo-mlx random-model DIR`)"
)


def find(model: str | Path, *, progress: bool = False, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The folder that holds a model's `config.json` and weights.

    Args:
        model: a bundled name, a folder, or a repository on the hub (`owner/name`).
        progress: whether a download draws its bars on standard error.
        endpoint: the hub's address; by default that of `huggingface_hub`, which reads HF_ENDPOINT.
        cache: the hub's cache; by default that of `huggingface_hub`, which reads HF_HOME and HF_HUB_CACHE.

    Raises:
        DownloadError: a repository is neither cached nor reachable, does not exist, or asks for a licence.
        CheckpointError: there is no such folder, or it holds no model.
    """
    from mobileo_weights import bundled

    name = str(model)
    if name in (models := bundled()):
        return models[name]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return model_folder(folder)
    if folder.exists():
        raise CheckpointError(f"'{name}' is a file; give the folder that holds the model.")
    if isinstance(model, Path) or not _REPO_ID.fullmatch(name):
        known = f", and no bundled model ({', '.join(models)})" if models else ""
        raise CheckpointError(f"'{name}' is no folder{known}, and can't be a name on the hub (owner/name).")
    return _from_hub(name, progress, endpoint, cache)


def location(model: str | Path) -> str:
    """What `find` finds from any working directory: a folder's absolute path; of all else the name as it is."""
    from mobileo_weights import bundled

    folder = Path(model).expanduser()
    return os.path.abspath(folder) if str(model) not in bundled() and folder.is_dir() else str(model)


def model_folder(folder: Path) -> Path:
    """`folder`, or the one subfolder `final_merged_model_*` of it, whichever holds the model.

    Raises:
        CheckpointError: neither holds one, or several subfolders do.
    """
    candidates = [f for f in (folder, *sorted(folder.glob(SUBFOLDER))) if _looks_like_model(f)]
    if not candidates:
        raise CheckpointError(f"'{folder}' holds no model: a config.json and *.safetensors are expected.")
    return _only(candidates, folder, folder)


def _looks_like_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors*"))


def _only(candidates: Sequence[Any], root: Any, where: str | Path) -> Any:
    """The root if it is among the candidates, else the only one."""
    if candidates[0] == root or len(candidates) == 1:
        return candidates[0]
    names = ", ".join(PurePosixPath(c).name for c in candidates)
    raise CheckpointError(f"'{where}' holds several models ({names}); give the folder of one of them.")


def _from_hub(repo: str, progress: bool, endpoint: str | None, cache: Path | None) -> Path:
    from huggingface_hub import constants

    cache = Path(cache or constants.HF_HUB_CACHE)
    cached, complete = _cached(repo, cache)
    if cached is not None and complete:
        return cached
    try:
        if constants.HF_HUB_OFFLINE:
            raise DownloadError(
                f"'{repo}' is not cached, and HF_HUB_OFFLINE forbids to download it: unset it, or {_OFFLINE_WAYS}."
            )
        with _bars(progress):
            return _download(repo, endpoint, cache)
    except DownloadError:
        # Somebody else's download may lack the tokenizer alone, which not every task needs.
        if cached is not None:
            return cached
        raise


def cached_state(repo: str, cache: Path) -> tuple[Literal["cached", "incomplete", "absent"], Path | None]:
    """What is cached of a repository, and the model's folder where its weights are whole. No network is used.

    Args:
        cache: the hub's, or one of its form.
    """
    folder, complete = _cached(repo, cache)
    if folder is not None and complete:
        return "cached", folder
    started = folder is not None or any((_store(repo, cache) / "blobs").glob("*"))
    return ("incomplete" if started else "absent"), folder


def is_here(name: str) -> bool:
    """Whether a model or an adapter is found without a download: bundled, or a folder, or whole in the hub's cache.

    What is neither a folder nor can be a name on the hub is, too, as it would not be downloaded.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from mobileo_weights import bundled

    repo = name.partition("@")[0]
    if name in bundled() or is_folder(expand(name)) or not _REPO_ID.fullmatch(repo):
        return True
    cache = Path(constants.HF_HUB_CACHE)
    if cached_state(repo, cache)[0] == "cached":
        return True
    return isinstance(try_to_load_from_cache(repo, "adapter_config.json", cache_dir=cache), str)


def _store(repo: str, cache: Path) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def _cached(repo: str, cache: Path) -> tuple[Path | None, bool]:
    """The cached model of a repository if all its weights are there, and whether its tokenizer is, too."""
    store = _store(repo, cache)
    try:
        revision = (store / "refs" / "main").read_text(encoding="utf-8").strip()
        folder = model_folder(store / "snapshots" / revision)
        config = read_json(folder / "config.json")
        if config.get("format") == OUR_FORMAT:
            present = [(folder / f"{name}.safetensors").is_file() for name in config.get("components", ())]
            if not all(present):
                return None, False
        else:
            weight_files(folder)
    except (OSError, CheckpointError):
        return None, False
    present = [(folder / name).is_file() for name in TOKENIZER_FILES]
    return folder, present[0] or all(present[1:])


def _needed(files: Sequence[str], repo: str) -> tuple[str, list[str]]:
    """The folder of the model inside a repository ("" for its root) and the files that it takes.

    Raises:
        CheckpointError: there is no model in it, or there are several.
    """
    paths = [PurePosixPath(file) for file in files]
    folders = {str(p.parent) for p in paths if p.name == "config.json"}
    folders &= {str(p.parent) for p in paths if p.suffix == ".safetensors"}
    candidates = [f for f in sorted(folders) if f == "." or fnmatch.fnmatchcase(f, SUBFOLDER)]
    candidates = [f for f in candidates if "/" not in f]
    if not candidates:
        raise CheckpointError(f"'{repo}' on the hub holds no model: a config.json and *.safetensors are expected.")
    root = _only(candidates, ".", repo)
    needed = []
    for path in paths:
        inside = path.relative_to(root) if root == "." or path.is_relative_to(root) else None
        own = inside is not None and len(inside.parts) == 1 and any(map(inside.match, _NEEDED))
        # The configurations of DiT, VAE and scheduler stand inside the model's folder or beside it.
        parent = (inside or path).parts[0]
        if own or (parent == "diffusion" and path.suffix == ".json"):
            needed.append(str(path))
    return ("" if root == "." else root), needed


def _download(repo: str, endpoint: str | None, cache: Path) -> Path:
    """Downloads what a model needs into the hub's cache, and returns its folder there."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi(endpoint=endpoint).model_info(repo, timeout=_TIMEOUT)
        revision = info.sha or "main"
        folder, needed = _needed([file.rfilename for file in info.siblings or ()], repo)
        config = str(PurePosixPath(folder) / "config.json")
        # config.json comes last, and with it the note which snapshot is the current one: while that is missing,
        # nothing passes for complete.
        for file in needed:
            if file != config:
                _fetch_large(repo, file, revision, endpoint, cache)
                hf_hub_download(repo, file, revision=revision, endpoint=endpoint, cache_dir=cache)
        last = hf_hub_download(repo, config, revision="main", endpoint=endpoint, cache_dir=cache)
    except CheckpointError:
        raise
    except Exception as error:
        # Not narrower: the hub's client has changed its HTTP library, and with it the errors, more than once.
        raise _download_error(repo, error) from error
    return Path(last).parent


def _fetch_large(repo: str, file: str, revision: str, endpoint: str | None, cache: Path) -> None:
    """Downloads a large file into the cache, going on with what an interrupted download left.

    `hf_hub_download` then finds the data and only links it into the snapshot. Small files are left to it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, timeout=_TIMEOUT)
    size, etag = metadata.size, metadata.etag
    if size is None or size < _LARGE or etag is None:
        return
    target = _store(repo, cache) / "blobs" / etag
    if target.exists():
        return
    headers = build_hf_headers()
    if _host(metadata.location) != _host(url):
        headers.pop("authorization", None)  # the storage behind the hub has its own key, in the address
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{etag}.mobileo-mlx.part")
    with partial.open("ab") as part, _locked(part, repo):
        done = partial.stat().st_size
        if done > size:
            part.truncate(done := 0)
        if done < size:
            http_get(
                metadata.location,
                part,
                resume_size=done,
                headers=headers,
                expected_size=size,
                displayed_filename=file,
            )
        part.flush()
        if _SHA256.fullmatch(etag) and _digest(partial) != etag:
            part.truncate(0)
            raise DownloadError(f"'{file}' of '{repo}' arrived damaged; try again.")
        partial.replace(target)


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _locked(file: Any, repo: str) -> Iterator[None]:
    """Two processes that append to one file would ruin it."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DownloadError(f"'{repo}' is being downloaded by another process; wait for it to end.") from error
    yield  # closing the file gives the lock back


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


def _download_error(repo: str, error: Exception) -> DownloadError:
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"'{repo}' asks for a licence to be accepted: accept it on its page on the hub and run `hf auth login`, or "
            f"{_OFFLINE_WAYS}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(
            f"'{repo}' is neither a folder nor a model on the hub that you may read: check its name, or "
            f"{_OFFLINE_WAYS}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"'{repo}' does not fit on the disk: free some space, or set HF_HOME to a folder on a larger one."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return DownloadError(
        f"'{repo}' is not cached and could not be downloaded ({reason}): try again with a connection, or "
        f"{_OFFLINE_WAYS}."
    )
