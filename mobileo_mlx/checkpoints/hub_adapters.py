"""Adapters on the hub: `owner/name` or `owner/name@revision`, with the adapter's files at the repository's root.

They lie in the same cache as models. One that is there is used without any network access, and so is the knowledge that
a repository lacks a file: `huggingface_hub` notes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from . import hub_download
from .hub_download import split_name

__all__ = ["cached", "fetch", "split_name"]


def cached(name: str, files: Sequence[str], *, cache: Path | None = None) -> Path | None:
    """The folder of an adapter in the cache; None where one of the files may exist and is not there.

    Args:
        name: see `hub_download.split_name`.
        files: that an adapter may consist of.
        cache: as for `hub.find`.
    """
    from huggingface_hub import try_to_load_from_cache

    if (found := split_name(name)) is None:
        return None
    paths = [try_to_load_from_cache(found[0], file, cache_dir=cache, revision=found[1]) for file in files]
    there = [Path(path) for path in paths if isinstance(path, str)]
    return there[0].parent if there and None not in paths else None


def fetch(
    name: str, files: Sequence[str], *, progress: bool = False, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """The folder of an adapter in the cache, downloaded where it is not there.

    Args:
        name, files: see `cached`.
        progress, endpoint, cache: as for `hub.find`.

    Raises:
        DownloadError: it is neither cached nor reachable, does not exist, or asks for a licence.
        CheckpointError: the repository holds none of the files.
    """
    from huggingface_hub import constants

    def choose(listed: list[str]) -> list[str]:
        if not (found := [file for file in files if file in listed]):
            raise CheckpointError(f"'{name}' on the hub holds no adapter: {', '.join(files)} are not there.")
        return found

    def there() -> Path | None:
        return cached(name, files, cache=cache)

    if (folder := there()) is not None:
        return folder
    hub_download.check_online(name)
    cache = cache or Path(constants.HF_HUB_CACHE)
    folder = hub_download.download(name, choose, there, progress=progress, endpoint=endpoint, cache=cache)
    absent = folder.parents[1] / ".no_exist" / folder.name  # as huggingface_hub notes it
    for file in files:
        if not (folder / file).exists():
            absent.mkdir(parents=True, exist_ok=True)
            (absent / file).touch()
    return folder
