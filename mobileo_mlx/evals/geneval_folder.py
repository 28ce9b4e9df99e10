"""The folder of pictures that GenEval's scorer reads, ours and the official one.

00012/metadata.jsonl      what the prompt with the number 12 asks for
00012/samples/00003.png   the last of its four pictures
00012/grid.png            all of them on one sheet
batch/                    what `mobileo_mlx.batch` keeps; its pictures are those of the samples, under another name
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import add_name, atomic_write, output_error
from ..batch.jobs import MADE
from ..batch.tasks import picture_path
from ..errors import OutputError, PromptError
from ..files import JSONError, expand, is_file, is_folder, kind_of, open_input, parse_json, read_bytes
from ..image_settings import save_png
from ..images import contact_sheet, load_image
from .geneval_prompts import Metadata, check_metadata, text_of

WORK = "batch"
SAMPLES = 4
SEED = 42  # of the first picture of every prompt

_METADATA = "metadata.jsonl"
_PICTURE = re.compile(r"[0-9]+\.png")
_NUMBER = re.compile(r"[0-9]{1,6}")  # of a prompt; without a limit, one name could ask for a list of a billion others
_LIMIT = 2**20  # bytes of a metadata file


def job_lines(prompts: Sequence[Metadata], *, samples: int = SAMPLES, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """The tasks of a batch: of every prompt `samples` pictures, with the same seeds, that of the first and so on.

    Upstream sets the seed before every prompt, so that there, too, all prompts have the same noises.
    """
    for number, metadata in enumerate(prompts):
        for sample in range(samples):
            yield {"id": _name(number, sample), "prompt": metadata["prompt"], "seed": seed + sample}


def make_folder(path: str | Path) -> Path:
    """The folder, which is made where it is missing.

    Returns:
        its path from the root of the file system.

    Raises:
        OutputError: it is a file, holds something that is not of a run, or can't be made.
    """
    target = Path(os.path.abspath(expand(path)))
    if kind_of(target, error=OutputError) in ("file", "other"):
        raise OutputError(f"'{path}' is a file; name a folder.")
    try:
        target.mkdir(exist_ok=True)
        others = sorted(name for name in os.listdir(target) if not name.startswith("."))
    except OSError as error:
        raise output_error(error, path) from error
    if others and WORK not in others:
        raise OutputError(f"'{path}' holds other things ('{others[0]}'); name a new folder.")
    return target


def arrange(folder: Path, prompts: Sequence[Metadata], *, samples: int = SAMPLES) -> None:
    """Gives the pictures that are drawn their official names, and writes what is missing beside them.

    Args:
        folder: of a run.
        prompts: of which it draws `samples` pictures each.

    Raises:
        OutputError: the disk is full, or a picture that is not of this run has the name of one.
    """
    for number, metadata in enumerate(prompts):
        place = folder / f"{number:05}"
        try:
            (place / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(error, place) from error
        _write_metadata(place / _METADATA, text_of(metadata).encode())
        pictures = []
        for sample in range(samples):
            drawn = folder / WORK / picture_path(_name(number, sample), number * samples + sample + 1, ".png")
            if is_file(drawn, error=OutputError):
                pictures.append(place / "samples" / f"{sample:05}.png")
                add_name(drawn, pictures[-1])
        if len(pictures) == samples and not is_file(place / "grid.png", error=OutputError):
            save_png(contact_sheet([load_image(path) for path in pictures], 2), place / "grid.png", overwrite=True)


def _write_metadata(path: Path, text: bytes) -> None:
    """What a prompt asks for, which may have been corrected since its pictures were drawn."""
    if is_file(path, error=OutputError):
        with open_input(path, error=OutputError) as file:
            if file.read(len(text) + 1) == text:
                return
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_bytes(text)


@dataclass(frozen=True)
class Prompt:
    """A prompt's part of a folder.

    Attributes:
        path: its own folder.
        metadata: what it asks for.
        pictures: of it that are there, in the order of their names.
    """

    path: Path
    metadata: Metadata
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Pictures:
    """All that is to be scored.

    Attributes:
        prompts: in the order of their numbers.
        missing: paths of pictures that are not there, but belong to the run. Where another program has drawn, every
            prompt has as many as the one with the most, and the number of one without a folder stands for all of its.
    """

    prompts: tuple[Prompt, ...]
    missing: tuple[str, ...]

    @property
    def count(self) -> int:
        """Of pictures that are there."""
        return sum(len(prompt.pictures) for prompt in self.prompts)


def read_folder(path: str | Path) -> Pictures:
    """What is in a folder, drawn by this program or another one.

    Args:
        path: of the folder, as it is to stand in results.

    Raises:
        PromptError: there is none, it holds no pictures of GenEval, or the metadata of a prompt are damaged.
    """
    if not is_folder(path, error=PromptError):
        raise PromptError(f"there is no folder '{path}'; draw the pictures with `mobileo-mlx eval geneval --out DIR`.")
    numbers = sorted(filter(_NUMBER.fullmatch, _names(path)), key=int)
    prompts = tuple(
        _read_prompt(Path(path, name)) for name in numbers if is_folder(Path(path, name), error=PromptError)
    )
    if not any(prompt.pictures for prompt in prompts):
        raise PromptError(f"'{path}' holds no pictures of GenEval, such as 00000/samples/00000.png; name their folder.")
    there = {f"{prompt.path.name}/samples/{picture.name}" for prompt in prompts for picture in prompt.pictures}
    expected = _lines(Path(path, WORK, MADE)) or _as_many_each(prompts)
    return Pictures(prompts, tuple(name for name in expected if name not in there))


def _lines(path: Path) -> list[str]:
    """The pictures that a run of ours draws; none where another program has drawn."""
    if not is_file(path, error=PromptError):
        return []
    try:
        with open_input(path, error=PromptError) as file:
            names = [parse_json(line)["id"].split("-") for line in file]
    except (JSONError, LookupError, TypeError, AttributeError):  # somebody's own file
        return []
    return [f"{number}/samples/{sample}.png" for number, sample in names]


def _as_many_each(prompts: Sequence[Prompt]) -> Iterator[str]:
    """The pictures of a folder of which every prompt has as many as the one with the most."""
    most = max(len(prompt.pictures) for prompt in prompts)
    width = len(next(prompt for prompt in prompts if prompt.pictures).pictures[0].stem)
    known = {int(prompt.path.name): prompt.path.name for prompt in prompts}
    for number in range(max(known) + 1):
        if number in known:
            yield from (f"{known[number]}/samples/{sample:0{width}}.png" for sample in range(most))
        else:
            yield f"{number:05}"


def _read_prompt(path: Path) -> Prompt:
    file, samples = path / _METADATA, path / "samples"
    try:
        metadata = check_metadata(parse_json(read_bytes(file, limit=_LIMIT, error=PromptError)))
    except (JSONError, PromptError) as error:
        what = str(error).rstrip(".")
        named = what if what.startswith("'") else f"'{file}' {what}"  # what can't be read is named already
        raise PromptError(f"{named}; write the prompt's line of GenEval's file into it.") from error
    names = _names(samples) if is_folder(samples, error=PromptError) else []
    return Prompt(path, metadata, tuple(samples / name for name in sorted(names) if _PICTURE.fullmatch(name)))


def _names(folder: str | Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise PromptError(f"'{folder}' can't be read ({error.strerror}).") from error


def _name(number: int, sample: int) -> str:
    return f"{number:05}-{sample:05}"
