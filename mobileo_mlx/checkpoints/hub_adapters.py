"""Adapters on the hub: `owner/name` or `owner/name@revision`, with the adapter's files at the repository's root.

They lie in the same cache as models. One that is there is used without any network access, and so is the knowledge that
a repository lacks a file: `huggingface_hub` notes both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError, DownloadError
from . import hub

_NAME = re.compile(r"(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(\w[\w./-]{0,199}))?", re.ASCII)


def split_name(name: str) -> tuple[str, str] | None:
    """The repository and the revision that a text names, "main" where it names none; None where it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None or ".." in name or "--" in found[1]:
        return None
    return found[1], found[2] or "main"


def cached(name: str, files: Sequence[str], *, cache: Path | None = None) -> Path | None:
    """The folder of an adapter in the cache; None where one of the files may exist and is not there.

    Args:
        name: see above.
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
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    if (folder := cached(name, files, cache=cache)) is not None:
        return folder
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"'{name}' is not cached, and HF_HUB_OFFLINE forbids to download it; unset it.")
    repo, revision = split_name(name) or (name, "main")
    there = []
    with hub._bars(progress):
        for file in files:
            try:
                path = hf_hub_download(repo, file, revision=revision, endpoint=endpoint, cache_dir=cache)
            except EntryNotFoundError:
                continue
            except Exception as error:
                # As in `hub`: the client has changed the errors that it raises more than once.
                raise hub._download_error(name, error) from error
            there.append(Path(path))
            revision = there[0].parent.name  # all of them from one commit
    if not there:
        raise CheckpointError(f"'{name}' on the hub holds no adapter: {', '.join(files)} are not there.")
    return there[0].parent
