"""The prompts of GenEval (arXiv 2310.11513): what is drawn, and what a picture must show to be right.

A line of a file of prompts is an object:

    {"tag": "position", "prompt": "a photo of a dog right of a teddy bear",
     "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]}

An entry of "include" asks for `count` objects of a class, of a "color", and of a "position" relative to the objects of
an earlier entry, whose number stands there. "exclude" forbids `count` or more. The official 553 are in
`data/geneval/`, under the MIT licence that lies there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..files import JSONError, parse_json, read_bytes
from ..options import shown
from ..prompts import check_text
from .geneval_rules import COLOURS, RELATIONS

DATA = Path(__file__).parent / "data" / "geneval"
OFFICIAL = DATA / "evaluation_metadata.jsonl"
OBJECT_NAMES = DATA / "object_names.txt"
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # in the paper's order

Metadata = Mapping[str, Any]  # a line

_LIMIT = 2**26  # bytes of a file of prompts
_MAX_COUNT = 1000


def read_prompts(path: str | Path | None = None, *, limit: int | None = None) -> list[Metadata]:
    """The lines of a file of prompts, checked; keys that are not known are kept.

    Args:
        path: of the file; None for the official ones.
        limit: take only the first so many.

    Raises:
        PromptError: the file can't be read, holds none, or a line is not as it must be; it names the line.
    """
    path = OFFICIAL if path is None else path
    found = [*_read(path)][:limit]
    if not found:
        raise PromptError(f"'{path}' holds no prompts: write a JSON object a line, as in GenEval's own file.")
    return found


def check_metadata(value: Any) -> Metadata:
    """A line's JSON value as it is, if it can be scored.

    Raises:
        PromptError: it can't; the message goes on after the name of what holds it.
    """
    if not isinstance(value, dict):
        raise PromptError("is not a JSON object")
    for key in ("tag", "prompt"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise PromptError(f"has no text {key!r}")
    check_text(value["prompt"], "prompt")
    include, exclude = value.get("include", []), value.get("exclude", [])
    if not isinstance(include, list) or not isinstance(exclude, list) or not [*include, *exclude]:
        raise PromptError("has neither a list 'include' nor a list 'exclude'")
    for number, entry in enumerate(include):
        _check_entry(entry, number)
    for entry in exclude:
        _check_entry(entry, 0)
    return value


@cache
def official_texts() -> frozenset[str]:
    """The official prompts' metadata, each as `text_of` writes it."""
    return frozenset(map(text_of, read_prompts()))


def text_of(metadata: Metadata) -> str:
    """The metadata as the text that tells prompts apart: upstream's summary compares it so."""
    return json.dumps(metadata)


def _read(path: str | Path) -> Iterator[Metadata]:
    for number, line in enumerate(read_bytes(path, limit=_LIMIT, error=PromptError).splitlines(), 1):
        if line.strip():
            try:
                yield check_metadata(parse_json(line))
            except (JSONError, PromptError) as error:
                raise PromptError(f"'{path}', line {number} {str(error).rstrip('.')}.") from error


def _check_entry(entry: Any, number: int) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
        raise PromptError("asks for something without a 'class'")
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_COUNT:
        raise PromptError(f"has the count {shown(count)}; choose a whole number from 1 to {_MAX_COUNT}")
    if "color" in entry and entry["color"] not in COLOURS:
        raise PromptError(f"has the color {shown(entry['color'])}; there are {', '.join(COLOURS)}")
    if "position" in entry:
        position = entry["position"]
        if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
            raise PromptError(f"has the position {shown(position)}; write one of {', '.join(RELATIONS)}, and a number")
        if position[1] not in range(number) or isinstance(position[1], bool):
            raise PromptError("has a position relative to an entry that does not stand before it")
