"""Quadruplets from a JSONL file.

A line is one object: `prompt`, `image`, and `question` with `answer`, or a list `qa` of such pairs; an edit has
`source_image` too. Paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..prompts import check_text
from .quadruplets import QA, DataError, ImageRef, Malformed, Problem, Sample


def read_lines(path: Path, questions: bool) -> Iterator[Sample | Problem]:
    """The samples of a file, whose images are not opened yet, and what is wrong with the other lines.

    Args:
        questions: whether every line needs a question and an answer; otherwise they are not read.

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
        except (Malformed, PromptError) as error:
            yield Problem(name, str(error))


def _sample(entry: Any, name: str, folder: Path, questions: bool) -> Sample:
    if not isinstance(entry, dict):
        raise Malformed("is not a JSON object")
    prompt, image = _texts(entry, "prompt", "image")
    source = None
    if entry.get("source_image") is not None:
        source = ImageRef(folder / _texts(entry, "source_image")[0])
    reference = ImageRef(folder / image)
    return Sample(name, check_text(prompt), reference, source, reference, _pairs(entry) if questions else ())


def _pairs(entry: dict[str, Any]) -> tuple[QA, ...]:
    if "qa" not in entry:
        return (_pair(entry),)
    pairs = entry["qa"]
    if "question" in entry or "answer" in entry:
        raise Malformed("has 'qa' and a 'question' or 'answer' beside it; give one or the other")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        raise Malformed("'qa' is not a list of objects, each with 'question' and 'answer'")
    return tuple(_pair(pair) for pair in pairs)


def _pair(entry: dict[str, Any]) -> QA:
    question, answer = _texts(entry, "question", "answer")
    return QA(check_text(question, "question"), check_text(answer, "answer"))


def _texts(entry: dict[str, Any], *keys: str) -> list[str]:
    """The values of these keys, each a text with something in it."""
    if missing := [repr(key) for key in keys if key not in entry]:
        raise Malformed(f"lacks {' and '.join(missing)}")
    for key in keys:
        if not isinstance(entry[key], str):
            raise Malformed(f"{key!r} is not text")
        if not entry[key].strip():
            raise Malformed(f"{key!r} is empty")
    return [entry[key] for key in keys]
