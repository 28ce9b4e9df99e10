"""DPG-Bench (arXiv 2403.05135): long prompts, of each of which its scorer wants one sheet of four pictures.

DIR/partiprompts12.png   the sheet of `partiprompts12.txt`: two rows of two pictures, without a gap
DIR/batch/               what `mobileo_mlx.batch` keeps, the pictures among it
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batch.tasks import picture_path
from ..errors import OutputError, PromptError
from ..files import is_file, is_folder, parse_json, read_bytes, read_text
from ..image_settings import save_png
from ..images import contact_sheet, load_image
from ..prompts import check_text
from .geneval_folder import WORK

OFFICIAL = Path(__file__).parent / "data" / "dpg" / "prompts.jsonl"
SAMPLES = 4  # on a sheet
SEED = 42  # of the first picture of every prompt

_LIMIT = 2**22  # bytes of the bundled prompts
_LONGEST = 2**16  # bytes of a prompt


@dataclass(frozen=True)
class Prompt:
    """What is drawn.

    Attributes:
        name: of its file, without `.txt`; that of its sheet, without `.png`.
        text: the prompt.
    """

    name: str
    text: str


def read_prompts(folder: str | Path | None = None, *, limit: int | None = None) -> list[Prompt]:
    """The prompts in the order of their names.

    Args:
        folder: of `.txt` files, a prompt each; by default the 1065 that are bundled.
        limit: take only the first so many.

    Raises:
        PromptError: there is no such folder, none in it, or one can't be read.
    """
    if folder is None:
        lines = map(parse_json, read_bytes(OFFICIAL, limit=_LIMIT, error=PromptError).splitlines())
        return [Prompt(line["name"], line["prompt"].strip()) for line in lines][:limit]
    if not is_folder(folder, error=PromptError):
        raise PromptError(f"there is no folder '{folder}'; name one that holds prompts, each in a .txt file.")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".txt") and not name.startswith("."))
    except OSError as error:
        raise PromptError(f"'{folder}' can't be read ({error.strerror}).") from error
    if not names:
        raise PromptError(f"'{folder}' holds no prompts: put each in a .txt file.")
    return [_read(Path(folder, name)) for name in names[:limit]]


def job_lines(prompts: Sequence[Prompt], *, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The tasks of a batch: four pictures of every prompt, with the same seeds for all prompts."""
    for number, prompt in enumerate(prompts):
        for sample in range(SAMPLES):
            yield {"id": _name(number, sample), "prompt": prompt.text, "seed": seed + sample}


def arrange(folder: Path, prompts: Sequence[Prompt]) -> int:
    """Makes the sheets that are missing and whose four pictures are there.

    Args:
        folder: of a run.
        prompts: of which it draws four pictures each.

    Returns:
        how many sheets are there.

    Raises:
        OutputError: the disk is full, or the folder is not writable.
    """
    there = 0
    for number, prompt in enumerate(prompts):
        sheet = folder / f"{prompt.name}.png"
        lines = ((sample, number * SAMPLES + sample + 1) for sample in range(SAMPLES))
        drawn = [folder / WORK / picture_path(_name(number, sample), line, ".png") for sample, line in lines]
        if not is_file(sheet, error=OutputError):
            if not all(is_file(path, error=OutputError) for path in drawn):
                continue
            save_png(contact_sheet([load_image(path) for path in drawn], 2), sheet, overwrite=True)
        there += 1
    return there


def _read(path: Path) -> Prompt:
    text = read_text(path, limit=_LONGEST, error=PromptError).strip()
    if not text:
        raise PromptError(f"'{path}' is empty; write a prompt into it, or remove it.")
    check_text(text, f"prompt in '{path}'")
    return Prompt(path.name.removesuffix(".txt"), text)


def _name(number: int, sample: int) -> str:
    return f"{number:05}-{sample}"
