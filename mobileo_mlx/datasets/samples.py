"""Finished samples: which part of the data each belongs to, and the files that `finetune` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..atomic import atomic_write
from ..errors import OptionError
from ..training.jsonl import MAX_LINE
from ..training.quadruplets import QA
from .pictures import Picture


@dataclass(frozen=True)
class Sample:
    """What becomes a line.

    Attributes:
        id: by which a review knows it; see `Draft.id`.
        prompt: a caption, or of an edit the instruction.
        picture: what the model learns to draw.
        source: what an edit starts from.
        qa: questions about the picture, and answers.
        origin: where the prompt comes from.
        held_out: whether it is in the second file, of those that are not trained on.
    """

    id: str
    prompt: str
    picture: Picture
    source: Picture | None = None
    qa: tuple[QA, ...] = ()
    origin: str = ""
    held_out: bool = False


def check_split(split: float) -> None:
    """Checks the option.

    Raises:
        OptionError: it is no share.
    """
    if not 0 <= split < 1:
        raise OptionError(f"--split {split}: choose a share from 0 up to, but not including, 1.")


def first_pictures(samples: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For the digest of each picture that of the one that it was made of in the end, through edits of edits.

    All that hangs together by edits has the same one, so that no picture is on both sides of a split. Of several, or
    where edits go round in a circle, the smallest is taken.

    Args:
        samples: digests of a picture and of what it was made of, "" where that is nothing.
    """
    above: dict[str, str] = {}

    def top(digest: str) -> str:
        while above.setdefault(digest, digest) != digest:
            above[digest] = above[above[digest]]
            digest = above[digest]
        return digest

    made = set()
    for picture, source in samples:
        one, other = top(picture), top(source or picture)
        above[one] = other
        if source and source != picture:
            made.add(picture)
    first: dict[str, str] = {}
    for digest in sorted(above, key=lambda digest: (digest in made, digest)):
        first.setdefault(top(digest), digest)
    return {digest: first[top(digest)] for digest in above}


def is_held_out(first: str, split: float) -> bool:
    """Whether a picture is among the share that is not trained on: its pixels alone decide, whatever else there is.

    Args:
        first: the digest of its pixels; of an edit those of the picture that it starts from, see `first_pictures`.
        split: the share.
    """
    return int(first[:12], 16) < split * 16**12


def held_out_path(out: Path) -> Path:
    """The second file: `data-validation.jsonl` for `data.jsonl`."""
    return out.with_name(f"{out.stem}-validation{out.suffix}")


def record_of(sample: Sample, folder: Path, beside: Path) -> dict[str, object]:
    """The object that a line holds.

    Args:
        sample: to write.
        folder: that the pictures are in.
        beside: the folder of the file, to which paths are relative.
    """
    record: dict[str, object] = {"prompt": sample.prompt, "image": _relative(folder / sample.picture.path, beside)}
    if sample.source is not None:
        record["source_image"] = _relative(folder / sample.source.path, beside)
    qa = [{"question": pair.question, "answer": pair.answer} for pair in sample.qa]
    return record | (qa[0] if len(qa) == 1 else {"qa": qa} if qa else {})


def is_too_long(sample: Sample, folder: Path, beside: Path) -> bool:
    """Whether `finetune` would refuse its line for its length."""
    return len(json.dumps(record_of(sample, folder, beside))) >= MAX_LINE


def write_samples(
    samples: Sequence[Sample], out: Path, folder: Path, *, split: bool, overwrite: bool
) -> dict[Path, int]:
    """Writes the lines of all samples; each file is there whole or not at all, and the one to train on comes last.

    Args:
        samples: in order.
        out: the file of those that are trained on.
        folder: that the pictures are in.
        split: whether there is a second file.
        overwrite: whether files that exist are replaced.

    Returns:
        how many lines each file has.

    Raises:
        OutputError: a file exists, or can't be written.
    """
    parts = {out: [sample for sample in samples if not sample.held_out]}
    if split:
        parts[held_out_path(out)] = [sample for sample in samples if sample.held_out]
    beside = Path(os.path.realpath(out)).parent
    with ExitStack() as stack:
        for path, some in parts.items():
            temporary = stack.enter_context(atomic_write(path, overwrite=overwrite))
            with temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(_lines(some, folder, beside))
    return {path: len(some) for path, some in parts.items()}


def _lines(samples: Iterable[Sample], folder: Path, beside: Path) -> Iterable[str]:
    for sample in samples:
        yield json.dumps(record_of(sample, folder, beside)) + "\n"


def _relative(path: Path, beside: Path) -> str:
    text = os.path.relpath(path, beside)
    # Such as 'data:1.png' and '~.png', which else would be a URL, and somebody's home.
    return f"./{text}" if ":" in text.split("/")[0] or text.startswith("~") else text
