"""ImgEdit-Bench (arXiv 2505.20275): instructions for photos, whose edited images its scorer wants by their keys.

FOLDER/basic_edit.json   {"1082": {"id": "animal/000342021.jpg", "prompt": "...", "edit_type": "background"}, ...}
FOLDER/animal/...        the images that "id" names
DIR/1082.png             the edited image
DIR/batch/               what `mobileo_mlx.batch` keeps; its pictures are the same under another name
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..atomic import add_name
from ..batch.tasks import file_name, picture_path
from ..errors import OutputError, PromptError
from ..files import is_file, is_folder, read_json
from ..prompts import check_text
from .geneval_folder import WORK

LIST = "basic_edit.json"
SEED = 42  # of every image


@dataclass(frozen=True)
class Edit:
    """An image that is to be edited.

    Attributes:
        key: in the list; the name of the edited image.
        image: its path.
        instruction: what is to be done.
    """

    key: str
    image: Path
    instruction: str


def read_edits(folder: str | Path, *, limit: int | None = None) -> list[Edit]:
    """The edits in the order of the list.

    Args:
        folder: that holds `basic_edit.json` and the images.
        limit: take only the first so many.

    Raises:
        PromptError: there is no such folder or list, or an entry of it is not as it must be; it names the entry.
    """
    if not is_folder(folder, error=PromptError):
        raise PromptError(f"there is no folder '{folder}'; name the one of ImgEdit-Bench that holds {LIST}.")
    path = Path(folder, LIST)
    if not is_file(path, error=PromptError):
        raise PromptError(f"'{folder}' holds no {LIST}; name the folder of ImgEdit-Bench that does.")
    entries = read_json(path, error=PromptError)
    if not entries:
        raise PromptError(f"'{path}' has no entries; download it again.")
    return [_read(path, key, entry) for key, entry in list(entries.items())[:limit]]


def job_lines(edits: Sequence[Edit], *, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The tasks of a batch, one for each edit."""
    for edit in edits:
        yield {
            "id": edit.key,
            "task": "edit",
            "image": str(edit.image),
            "instruction": edit.instruction,
            "seed": seed,
        }


def arrange(folder: Path, edits: Sequence[Edit]) -> int:
    """Gives the edited images that are there their official names; returns how many are.

    Raises:
        OutputError: the disk is full, or an image that is not of this run has the name of one.
    """
    there = 0
    for line, edit in enumerate(edits, 1):
        drawn = folder / WORK / picture_path(edit.key, line, ".png")
        if is_file(drawn, error=OutputError):
            add_name(drawn, folder / f"{edit.key}.png")
            there += 1
    return there


def _read(path: Path, key: str, entry: Any) -> Edit:
    if file_name(key) != key or key == WORK:
        raise PromptError(f"'{path}' has the key {key[:60]!r}, which can't be the name of a file.")
    image, instruction = (entry.get("id"), entry.get("prompt")) if isinstance(entry, dict) else (None, None)
    if not isinstance(image, str) or not isinstance(instruction, str) or not image.strip():
        raise PromptError(f"'{path}' has no texts 'id' and 'prompt' for {key}.")
    inside = PurePosixPath(image)
    if inside.is_absolute() or ".." in inside.parts:
        raise PromptError(f"'{path}' names an image outside of its folder for {key}: {image[:60]!r}.")
    check_text(instruction, f"prompt of {key} in '{path}'")
    found = path.parent / inside
    if not is_file(found, error=PromptError):
        raise PromptError(f"'{found}' is missing, which '{path}' names for {key}; unpack all images there.")
    return Edit(key, found.absolute(), instruction)
