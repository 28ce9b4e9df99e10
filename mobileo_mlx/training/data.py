"""The data of a run: JSONL or upstream's shards, checked to the last image before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import MobileOError
from ..files import expand, kind_of
from .jsonl import read_lines
from .quadruplets import Data, DataError, ImageRef, Problem, Sample
from .webdataset import DEFAULT_QUESTION, find_shards, is_shard, read_shards

Progress = Callable[[int], None]

_MAX_PROBLEMS = 10_000  # after which reading ends


def read_data(
    path: str | Path, *, questions: bool = True, default_question: bool = False, progress: Progress | None = None
) -> Data:
    """Reads and checks quadruplets; every image is decoded once.

    Args:
        path: a JSONL file (or one with a JSON array), a WebDataset shard (`*.tar`), either of them also gzipped, or a
            folder of shards.
        questions: whether every sample needs a question and an answer; otherwise they are not read.
        default_question: whether a shard's sample without a question gets upstream's own question and answer;
            otherwise it is an error.
        progress: called with the number of samples read so far.

    Raises:
        DataError: samples can't be used, all of which its `problems` list, or the first ten thousand; or there is no
            sample.
    """
    path = expand(path)
    data = Data()
    problems: list[Problem] = []
    digest = hashlib.sha256()
    images: dict[ImageRef, tuple[str, str]] = {}
    for entry in _entries(path, questions, default_question):
        if isinstance(entry, Problem):
            problems.append(entry)
        else:
            for image in entry.images:
                if image not in images:
                    images[image] = _check_image(image)
                if reason := images[image][1]:
                    problems.append(Problem(entry.name, reason))
            data.samples.append(entry)
            data.default_questions += default_question and entry.qa == (DEFAULT_QUESTION,)
            digest.update(_fingerprint_text(entry, {image: images[image][0] for image in entry.images}).encode())
            if progress is not None:
                progress(len(data.samples))
        if len(problems) >= _MAX_PROBLEMS:
            raise DataError(f"'{path}' can't be trained on: there are {len(problems)} problems or more.", problems)
    data.fingerprint = digest.hexdigest()
    if problems:
        count = "is 1 problem" if len(problems) == 1 else f"are {len(problems)} problems"
        raise DataError(f"'{path}' can't be trained on: there {count}.", problems)
    if not data.samples:
        raise DataError(f"'{path}' holds no samples; give a file with one JSON object a line, or WebDataset shards.")
    return data


def _entries(path: Path, questions: bool, default_question: bool) -> Iterator[Sample | Problem]:
    kind = kind_of(path, error=DataError)
    if not kind:
        raise DataError(f"'{path}' does not exist; check its name.")
    if kind == "folder":
        return read_shards(find_shards(path), questions, default_question)
    if is_shard(path):
        return read_shards([path], questions, default_question)
    return read_lines(path, questions)


def _check_image(image: ImageRef) -> tuple[str, str]:
    """The SHA-256 of an image's file, in less time than decoding takes, and why it can't be used."""
    digest = ""
    try:
        content = image.read()
        digest = hashlib.sha256(content).hexdigest()
        image.decode(content)
    except MobileOError as error:
        return digest, str(error).rstrip(".")
    except MemoryError:
        return digest, f"'{image.path}' needs more memory than there is"
    return digest, ""


def _fingerprint_text(sample: Sample, digests: dict[ImageRef, str]) -> str:
    """All of a sample that is trained on: not the names of files, but what they hold."""
    images = (sample.image, sample.source_image, sample.question_image)
    texts = [sample.prompt, [(qa.question, qa.answer) for qa in sample.qa]]
    return json.dumps([*texts, [image and digests[image] for image in images]])
