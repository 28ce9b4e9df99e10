"""What is trained on: quadruplets from JSONL files, checked to the last image before anything is computed.

A line is one object: `prompt`, `image`, and `question` with `answer`, or a list `qa` of such pairs; an edit has
`source_image` too. Paths are relative to the file. Upstream's shards are read by `mobileo_mlx.training.webdataset`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, MobileOError, PromptError, TrainingError
from ..images import load_image
from ..prompts import check_text

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a file, or some bytes in a larger one."""

    path: Path
    offset: int = 0
    size: int | None = None  # None: the whole file

    def open(self) -> Image.Image:
        """The image as RGB, upright.

        Raises:
            ImageError: it is missing or broken.
        """
        if self.size is None:
            return load_image(self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return load_image(file.read(self.size), name=f"an image in '{self.path}'")


@dataclass(frozen=True)
class QA:
    """A question about an image, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One quadruplet, or a prompt-image pair.

    Attributes:
        name: for messages, such as `line 3` or `shard-0.tar: 000012`.
        prompt: a caption, or for an edit the instruction.
        image: what is to be drawn.
        source_image: what is edited; None where the image is drawn from its caption alone.
        seen: what the questions are about: the result, or what upstream's shards give for it.
        qa: questions and answers; empty where only images are trained.
    """

    name: str
    prompt: str
    image: ImageRef
    source_image: ImageRef | None
    seen: ImageRef
    qa: tuple[QA, ...]


@dataclass(frozen=True)
class Problem:
    """Why a sample can't be used."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class DataError(TrainingError):
    """The data can't be trained on.

    Attributes:
        problems: all of them, in the order of the data.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


@dataclass
class Data:
    """What was read.

    Attributes:
        samples: in the order of the files.
        problems: why others can't be used.
        fingerprint: by which a resumed run knows that the data are the same.
        stand_ins: samples without a question, for which upstream's own was taken.
    """

    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    fingerprint: str = ""
    stand_ins: int = 0

    @property
    def edits(self) -> int:
        return sum(sample.source_image is not None for sample in self.samples)

    @property
    def questions(self) -> int:
        return sum(len(sample.qa) for sample in self.samples)


Progress = Callable[[int], None]


def read_data(
    path: str | Path, *, questions: bool = True, default_question: bool = False, progress: Progress | None = None
) -> Data:
    """Reads and checks quadruplets; every image is decoded once.

    Args:
        path: a JSONL file, a WebDataset shard (`*.tar`), or a folder of shards.
        questions: whether every sample needs a question and an answer; otherwise they are not read.
        default_question: whether a shard's sample without a question gets upstream's own question and answer;
            otherwise it is a mistake.
        progress: called with the number of samples read so far.

    Raises:
        DataError: samples can't be used, all of which its `problems` list; or there is no sample.
    """
    from .webdataset import STAND_IN, find_shards, read_shard

    path = Path(path).expanduser()
    data = Data()
    digest = hashlib.sha256()
    found = read_lines(path, questions) if path.suffix != ".tar" and not path.is_dir() else None
    entries = found or (
        entry for shard in find_shards(path) for entry in read_shard(shard, questions, default_question)
    )
    for entry in entries:
        if isinstance(entry, Problem):
            data.problems.append(entry)
            continue
        data.problems += [Problem(entry.name, reason) for reason in _broken(entry)]
        data.samples.append(entry)
        data.stand_ins += default_question and entry.qa == (STAND_IN,)
        digest.update(_told(entry).encode("utf-8", "surrogatepass"))
        if progress is not None:
            progress(len(data.samples))
    data.fingerprint = digest.hexdigest()
    if data.problems:
        count = len(data.problems)
        what = "1 problem" if count == 1 else f"{count} problems"
        raise DataError(f"'{path}' can't be trained on: there {'is' if count == 1 else 'are'} {what}.", data.problems)
    if not data.samples:
        raise DataError(f"'{path}' holds no samples; give a file with one JSON object a line, or WebDataset shards.")
    return data


def read_lines(path: Path, questions: bool) -> Iterable[Sample | Problem]:
    """The samples of a JSONL file, whose images are not opened yet, and what is wrong with the other lines.

    Raises:
        DataError: the file can't be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"'{path}' can't be read ({error.strerror}); check the name of the data.") from error
    for number, line in enumerate(lines, start=1):
        name = f"line {number}"
        if not line.strip():
            continue
        try:
            yield _sample(json.loads(line.decode("utf-8-sig")), name, path.parent, questions)
        except UnicodeDecodeError:
            yield Problem(name, "is not UTF-8 text")
        except json.JSONDecodeError as error:
            yield Problem(name, f"is not JSON ({error.msg} at column {error.colno})")
        except (_Malformed, PromptError) as error:
            yield Problem(name, str(error))


class _Malformed(Exception):
    """What is wrong with a line, as the end of a sentence that begins with its number."""


def _sample(entry: Any, name: str, folder: Path, questions: bool) -> Sample:
    if not isinstance(entry, dict):
        raise _Malformed("is not a JSON object")
    if missing := [repr(key) for key in ("prompt", "image") if key not in entry]:
        raise _Malformed(f"lacks {' and '.join(missing)}")
    image = ImageRef(folder / _text(entry, "image"))
    source = ImageRef(folder / _text(entry, "source_image")) if entry.get("source_image") is not None else None
    prompt = check_text(_text(entry, "prompt"))
    return Sample(name, prompt, image, source, image, _pairs(entry) if questions else ())


def _pairs(entry: dict[str, Any]) -> tuple[QA, ...]:
    if "qa" not in entry:
        return (_pair(entry),)
    pairs = entry["qa"]
    if "question" in entry or "answer" in entry:
        raise _Malformed("has 'qa' and a 'question' or 'answer' beside it; give one or the other")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        raise _Malformed("'qa' is not a list of objects, each with 'question' and 'answer'")
    return tuple(_pair(pair) for pair in pairs)


def _pair(entry: dict[str, Any]) -> QA:
    if missing := [repr(key) for key in ("question", "answer") if key not in entry]:
        raise _Malformed(f"lacks {' and '.join(missing)}")
    question = check_text(_text(entry, "question"), "question")
    return QA(question, check_text(_text(entry, "answer"), "answer"))


def _text(entry: dict[str, Any], key: str) -> str:
    if not isinstance(entry[key], str):
        raise _Malformed(f"{key!r} is not text")
    if not entry[key].strip():
        raise _Malformed(f"{key!r} is empty")
    return entry[key]


def _broken(sample: Sample) -> list[str]:
    """What is wrong with the images of a sample."""
    reasons = []
    for picture in dict.fromkeys((sample.image, sample.source_image, sample.seen)):
        if picture is None:
            continue
        try:
            picture.open()
        except ImageError as error:
            reasons.append(str(error).rstrip("."))
        except (OSError, MobileOError) as error:
            reasons.append(f"'{picture.path}' can't be read ({error})")
    return reasons


def _told(sample: Sample) -> str:
    """All of a sample but the pixels."""
    pictures = [p and (p.path.name, p.offset, p.size) for p in (sample.image, sample.source_image, sample.seen)]
    return json.dumps([sample.prompt, pictures, [(qa.question, qa.answer) for qa in sample.qa]])
