"""Prompts of the world of shapes in GenEval's format, so that its commands can be tried on the small model.

The rules of GenEval then know of a picture what the detector reads: objects, colours and places, but not the ground.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobileo_mlx.atomic import atomic_write
from mobileo_mlx.errors import OptionError

from .text import Caption, sample_caption

_RELATIONS = {"to the left of": "left of", "to the right of": "right of", "above": "above", "below": "below"}
_TRIES = 2000  # without anything new, after which the world has no more

Entries = list[dict[str, Any]]


def _include(caption: Caption) -> Entries:
    """What the picture must show, with the colours that are named."""
    entries: Entries = []
    for shape, colour in caption.spec.objects:
        entries.append({"class": shape, "count": 1, **({} if colour is None else {"color": colour})})
    return entries


def _counting(caption: Caption) -> Entries:
    (first, *_), count = _include(caption), len(caption.spec.objects)
    return [{**first, "count": count}]


def _position(caption: Caption) -> Entries:
    first, second = _include(caption)
    return [second, {**first, "position": [_RELATIONS[str(caption.spec.relation)], 0]}]


# By tag: the category of the world, whether colours are named, and what a caption asks for.
_TAGS: dict[str, tuple[str, bool, Callable[[Caption], Entries]]] = {
    "single_object": ("single", False, _include),
    "two_object": ("two", False, _include),
    "counting": ("count", True, _counting),
    "colors": ("single", True, _include),
    "position": ("position", False, _position),
    "color_attr": ("two", True, _include),
}


def sample_prompts(tag: str, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Different prompts of a tag, `count` of them, or as many as the world has; none with a pair that is held out."""
    category, coloured, include = _TAGS[tag]
    found: dict[str, dict[str, Any]] = {}
    failed = 0
    while len(found) < count and failed < _TRIES:
        caption = sample_caption(rng, category, coloured=coloured)
        if caption.text in found or not _is_clear(caption, tag):
            failed += 1
            continue
        failed = 0
        entries = include(caption)
        first = entries[0]
        exclude = {"exclude": [{"class": first["class"], "count": first["count"] + 1}]} if tag == "counting" else {}
        found[caption.text] = {"tag": tag, "include": entries, **exclude, "prompt": caption.text}
    return list(found.values())


def write_prompts(path: Path, count: int, *, seed: int = 0) -> dict[str, int]:
    """Writes prompts of all tags, and returns how many there are of each.

    Args:
        path: of the file.
        count: of each tag.
        seed: of all choices.

    Raises:
        OptionError: `count` is below 1.
        OutputError: the file exists, or can't be written.
    """
    if count < 1:
        raise OptionError("at least 1 prompt of each tag is needed.")
    rng = np.random.default_rng(seed)
    by_tag = {tag: sample_prompts(tag, count, rng) for tag in _TAGS}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(prompt) + "\n" for prompts in by_tag.values() for prompt in prompts)
    return {tag: len(prompts) for tag, prompts in by_tag.items()}


def _is_clear(caption: Caption, tag: str) -> bool:
    """Whether the rules can tell the objects apart by their classes, and a count is one of several."""
    if tag == "counting":
        return len(caption.spec.objects) > 1
    return len({shape for shape, _ in caption.spec.objects}) == len(caption.spec.objects)
