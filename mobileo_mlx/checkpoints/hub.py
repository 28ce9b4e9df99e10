"""Finding a model: a bundled name, a folder, the hub's cache, the hub. In that order.

The cache is the one of `huggingface_hub`, shared with all other programs. A snapshot that is complete is used without
any network access; see `hub_download` for what is missing. A name on the hub may have a revision: `owner/name@v1` with
a branch, a tag or a commit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..errors import CheckpointError, DownloadError
from ..files import absolute, expand, is_file, is_folder, kind_of, read_json
from . import hub_download
from .hub_download import split_name
from .tensor_files import weight_files

DEFAULT_MODEL = "Amshaker/Mobile-O-0.5B"
SUBFOLDER = "final_merged_model_*"  # where upstream's training leaves the model
OUR_FORMAT = "mobileo-mlx"
TURBO = "turbo"  # the folder, inside of a model's, of its few-step adapter; see `turbo.py`
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")

_NEEDED = ("*.json", "*.safetensors", "merges.txt")


def find(
    model: str | Path,
    *,
    progress: bool = False,
    endpoint: str | None = None,
    cache: Path | None = None,
    refresh: bool = False,
) -> Path:
    """The folder that holds a model's `config.json` and weights.

    Args:
        model: a bundled name, a folder, or a repository on the hub (`owner/name`, `owner/name@revision`).
        progress: whether a download draws its bars on standard error.
        endpoint: the hub's address; by default that of `huggingface_hub`, which reads HF_ENDPOINT.
        cache: the hub's cache; by default that of `huggingface_hub`, which reads HF_HOME and HF_HUB_CACHE.
        refresh: whether the hub is asked for a later commit although one is cached.

    Raises:
        DownloadError: a repository is neither cached nor reachable, does not exist, or asks for a licence.
        CheckpointError: there is no such folder, or it holds no model.
    """
    from mobileo_weights import bundled

    name = str(model)
    if name in (models := bundled()):
        return models[name]
    folder = expand(model)
    if (kind := kind_of(folder)) == "folder":
        return model_folder(folder)
    if kind:
        raise CheckpointError(f"'{name}' is a file; give the folder that holds the model.")
    if isinstance(model, Path) or split_name(name) is None:
        known = f", and no bundled model ({', '.join(models)})" if models else ""
        raise CheckpointError(f"'{name}' is no folder{known}, and can't be a name on the hub (owner/name).")
    return _from_hub(name, progress, endpoint, cache or default_cache(), refresh)


def location(model: str | Path) -> str:
    """What `find` finds from any working directory: a folder's absolute path; of all else the name as it is."""
    from mobileo_weights import bundled

    folder = expand(model)
    return absolute(folder) if str(model) not in bundled() and is_folder(folder) else str(model)


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
    return is_file(folder / "config.json") and any(folder.glob("*.safetensors*"))


def _only(candidates: Sequence[Any], root: Any, where: str | Path) -> Any:
    """The root if it is among the candidates, else the only one."""
    if candidates[0] == root or len(candidates) == 1:
        return candidates[0]
    names = ", ".join(PurePosixPath(c).name for c in candidates)
    raise CheckpointError(f"'{where}' holds several models ({names}); give the folder of one of them.")


def _from_hub(name: str, progress: bool, endpoint: str | None, cache: Path, refresh: bool) -> Path:
    def there() -> Path | None:
        folder, complete = _cached(name, cache)
        return folder if complete and not refresh else None

    if (folder := there()) is not None:
        return folder
    inside = ""

    def choose(files: list[str]) -> list[str]:
        nonlocal inside
        inside, needed = _needed(files, name)
        # With config.json, which comes last, the model looks like one; and a few-step adapter with its own.
        return sorted(
            needed, key=lambda file: (file == str(PurePosixPath(inside) / "config.json"), file.endswith(".json"))
        )

    try:
        hub_download.check_online(name)
        found = hub_download.download(name, choose, there, progress=progress, endpoint=endpoint, cache=cache)
    except DownloadError:
        # Somebody else's download may lack the tokenizer alone, which not every task needs.
        folder, _ = _cached(name, cache)
        if folder is not None and not refresh:
            return folder
        raise
    return found / inside


def default_cache() -> Path:
    """The hub's cache as `huggingface_hub` has it, which reads HF_HOME and HF_HUB_CACHE."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_state(name: str, cache: Path) -> tuple[Literal["cached", "incomplete", "absent"], Path | None]:
    """What is cached of a repository, and the model's folder where its weights are whole. No network is used.

    Args:
        name: `owner/name`, or `owner/name@revision`.
        cache: the hub's, or one of its form.
    """
    folder, complete = _cached(name, cache)
    if folder is not None and complete:
        return "cached", folder
    repo = (split_name(name) or (name,))[0]
    started = folder is not None
    with suppress(OSError):  # closed to this user
        started = started or any((hub_download.store(repo, cache) / "blobs").glob("*"))
    return ("incomplete" if started else "absent"), folder


def is_here(name: str) -> bool:
    """Whether a model is found without a download: bundled, or a folder, or whole in the hub's cache.

    What is neither a folder nor can be a name on the hub is, too, as it would not be downloaded.
    """
    from mobileo_weights import bundled

    if name in bundled() or is_folder(expand(name)) or split_name(name) is None:
        return True
    return cached_state(name, default_cache())[0] == "cached"


def _cached(name: str, cache: Path) -> tuple[Path | None, bool]:
    """The cached model of a repository if all its weights are there, and whether its tokenizer is, too."""
    try:
        if (snapshot := hub_download.snapshot(name, cache)) is None:
            return None, False
        folder = model_folder(snapshot)
        config = read_json(folder / "config.json")
        if config.get("format") == OUR_FORMAT:
            names = config.get("components")
            parts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
            if not all(is_file(folder / f"{part}.safetensors") for part in parts):
                return None, False
        else:
            weight_files(folder)
        present = [is_file(folder / file) for file in TOKENIZER_FILES]
    except CheckpointError:
        return None, False
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
        own = inside is not None and str(inside.parent) in (".", TURBO) and any(map(inside.match, _NEEDED))
        # The configurations of DiT, VAE and scheduler stand inside the model's folder or beside it.
        parent = (inside or path).parts[:1]
        if own or (parent == ("diffusion",) and path.suffix == ".json"):
            needed.append(str(path))
    return ("" if root == "." else root), needed
