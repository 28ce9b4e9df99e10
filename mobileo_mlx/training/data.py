"""The data of a run: JSONL or upstream's shards, checked to the last image before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import ImageError, MobileOError
from .jsonl import read_lines
from .quadruplets import Data, DataError, Problem, Sample
from .webdataset import DEFAULT_QUESTION, find_shards, read_shard

Progress = Callable[[int], None]


def read_data(
    path: str | Path, *, questions: bool = True, default_question: bool = False, progress: Progress | None = None
) -> Data:
    """Reads and checks quadruplets; every image is decoded once.

    Args:
        path: a JSONL file, a WebDataset shard (`*.tar`), or a folder of shards.
        questions: whether every sample needs a question and an answer; otherwise they are not read.
        default_question: whether a shard's sample without a question gets upstream's own question and answer;
            otherwise it is an error.
        progress: called with the number of samples read so far.

    Raises:
        DataError: samples can't be used, all of which its `problems` list; or there is no sample.
    """
    path = Path(path).expanduser()
    data = Data()
    problems: list[Problem] = []
    digest = hashlib.sha256()
    for entry in _entries(path, questions, default_question):
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        problems += [Problem(entry.name, reason) for reason in _broken_images(entry)]
        data.samples.append(entry)
        data.default_questions += default_question and entry.qa == (DEFAULT_QUESTION,)
        digest.update(_fingerprint_text(entry).encode("utf-8", "surrogatepass"))
        if progress is not None:
            progress(len(data.samples))
    data.fingerprint = digest.hexdigest()
    if problems:
        count = "is 1 problem" if len(problems) == 1 else f"are {len(problems)} problems"
        raise DataError(f"'{path}' can't be trained on: there {count}.", problems)
    if not data.samples:
        raise DataError(f"'{path}' holds no samples; give a file with one JSON object a line, or WebDataset shards.")
    return data


def _entries(path: Path, questions: bool, default_question: bool) -> Iterator[Sample | Problem]:
    if path.suffix != ".tar" and not path.is_dir():
        yield from read_lines(path, questions)
    else:
        for shard in find_shards(path):
            yield from read_shard(shard, questions, default_question)


def _broken_images(sample: Sample) -> Iterable[str]:
    """What is wrong with the images of a sample."""
    for image in sample.images:
        try:
            image.open()
        except ImageError as error:
            yield str(error).rstrip(".")
        except (OSError, MobileOError) as error:
            yield f"'{image.path}' can't be read ({error})"


def _fingerprint_text(sample: Sample) -> str:
    """All of a sample but the pixels, and the folder that the data are in."""
    images = (sample.image, sample.source_image, sample.question_image)
    places = [image and (image.path.name, image.offset, image.size) for image in images]
    return json.dumps([sample.prompt, places, [(qa.question, qa.answer) for qa in sample.qa]])
