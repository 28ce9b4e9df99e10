"""Where the weights of the two networks are: in a folder of the user's, or in the hub's cache, or on the hub.

A folder has `mask2former.safetensors` or a folder `mask2former/`, and `clip/` or a file `clip.safetensors` with CLIP's
vocab.json and merges.txt beside it; what it lacks comes from the hub, in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...checkpoints import hub_download
from ...checkpoints.hub import default_cache
from ...errors import CheckpointError, OptionError
from ...files import expand, is_file, is_folder, kind_of

OBJECTS = "facebook/mask2former-swin-small-coco-instance"
COLOURS = "openai/clip-vit-large-patch14"
OBJECT_FILES = ("config.json", "model.safetensors")
COLOUR_FILES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")

_WAYS = "give a folder that holds mask2former/ and clip/ (`--weights DIR`)"


@dataclass(frozen=True)
class Files:
    """Where the two networks are.

    Attributes:
        objects: Mask2Former's folder or file.
        colours: CLIP's folder or file; its tokenizer's files are in the folder, or beside the file.
    """

    objects: Path
    colours: Path


def find_files(weights: Path | None, *, folders: bool = False) -> Files:
    """Finds the weights, and downloads what is not here.

    Args:
        weights: the user's folder, or Mask2Former's file alone; None for the hub.
        folders: whether only folders in transformers' layout will do.

    Raises:
        OptionError: there is nothing at `weights` that is one of the networks, or a file where a folder is needed.
        DownloadError: what is to come from the hub is neither cached nor reachable.
        CheckpointError: the repository on the hub lacks a file.
    """
    objects = colours = None
    if weights is not None:
        weights = expand(weights)
        objects, colours = _of_user(weights)
        for path in (objects, colours):
            if folders and path is not None and not is_folder(path, error=OptionError):
                raise OptionError(
                    f"'{path}' is read by the backend mlx alone; transformers needs a folder with its config.json."
                )
    return Files(objects or from_hub(OBJECTS, OBJECT_FILES), colours or from_hub(COLOURS, COLOUR_FILES))


def _of_user(weights: Path) -> tuple[Path | None, Path | None]:
    if is_file(weights, error=OptionError):
        return weights, None
    if not (kind := kind_of(weights, error=OptionError)):
        raise OptionError(f"there is no file or folder '{weights}' with a detector's weights.")
    found = []
    for name in ("mask2former", "clip") if kind == "folder" else ():
        places = (weights / name, weights / f"{name}.safetensors")
        found.append(next((path for path in places if kind_of(path, error=OptionError)), None))
    if not any(found):
        raise OptionError(
            f"'{weights}' holds neither mask2former/ nor clip/, nor a .safetensors file of one of these names."
        )
    return found[0], found[1]


def from_hub(name: str, files: Sequence[str], *, endpoint: str | None = None) -> Path:
    """The folder of a repository with these files, from the hub's cache or the hub.

    Args:
        name: `owner/name`.
        files: all that it must have.
        endpoint: the hub's address; by default that of `huggingface_hub`.

    Raises:
        DownloadError: it is neither cached nor reachable.
        CheckpointError: the repository lacks a file.
    """
    cache = default_cache()

    def there() -> Path | None:
        folder = hub_download.snapshot(name, cache)
        return folder if folder is not None and all(is_file(folder / file) for file in files) else None

    def choose(listed: list[str]) -> Sequence[str]:
        if lacking := [file for file in files if file not in listed]:
            raise CheckpointError(f"'{name}' on the hub lacks {', '.join(lacking)}; {_WAYS}.")
        return files

    if (folder := there()) is not None:
        return folder
    hub_download.check_online(name, ways=_WAYS)
    return hub_download.download(name, choose, there, progress=True, endpoint=endpoint, cache=cache, ways=_WAYS)
