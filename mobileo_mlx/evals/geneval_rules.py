"""When a picture of GenEval is right: the rules of its official scorer (arXiv 2310.11513, section 3), on detections.

They match the behaviour of the official `evaluate_images.py` with its default options, verdict for verdict:

- An object counts if its score is above 0.3, in the task "counting" above 0.9; of each class the 16 surest at most. The
  official limit on the overlap of two boxes, 1.0, removes none.
- An entry of "include" looks at the `count` surest objects of its class alone. So more objects than asked for are no
  fault, but where "exclude" says so; and it is the surest whose colour and position must be right.
- The position of one box seen from another is that of its centre, after the distance along each axis was made shorter
  by a tenth of the sum of both sizes along it. What is left, divided by the length of the whole distance, must be above
  one half.

The official script computes in float32, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .detections import Detection

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16  # of a class
POSITION_THRESHOLD = 0.1  # of the sum of both sizes
_DIRECTION = 0.5  # of the distance between the centres
_NOTHING = 1e-3  # pixels

Colours = Callable[[Sequence[Detection]], Sequence[str]]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right.

    Attributes:
        correct: whether all is there, and nothing that must not be.
        reason: what is wrong, a line for each thing; "" where it is right.
    """

    correct: bool
    reason: str


def keep(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects that count, by class, the surest first; a class without any is left out.

    Args:
        detections: of a picture. Of two with the same score the later one comes first. Upstream leaves that to NumPy's
            sort, which is stable for so few on most machines, and is read backwards.
        tag: the task of the prompt.
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    kept: dict[str, list[Detection]] = {}
    scores = np.array([found.score for found in detections], np.float32)
    for index in np.argsort(scores, kind="stable")[::-1]:
        found = detections[index]
        of_class = kept.setdefault(found.name, []) if scores[index] > threshold else None
        if of_class is not None and len(of_class) < MAX_OBJECTS:
            of_class.append(found)
    return kept


def judge(metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], colours: Colours) -> Verdict:
    """Whether a picture shows what its prompt asks for.

    Args:
        metadata: a line of `geneval_prompts.read_prompts`.
        objects: what `keep` gives.
        colours: says the colour of each of some objects of one class; only asked where the prompt names one.
    """
    reasons = []
    matched: list[Sequence[Detection] | None] = []  # by entry; None where it is not fulfilled
    for entry in metadata.get("include", ()):
        found = objects.get(entry["class"], ())[: entry["count"]]
        reason = _fault(entry, found, matched, colours)
        matched.append(None if reason else found)
        if reason:
            reasons.append(reason)
    for entry in metadata.get("exclude", ()):
        count = len(objects.get(entry["class"], ()))
        if count >= entry["count"]:
            reasons.append(f"expected {entry['class']}<{entry['count']}, found {count}")
    return Verdict(not reasons, "\n".join(reasons))


def _fault(
    entry: Mapping[str, Any],
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colours: Colours,
) -> str:
    """What is wrong with the objects of an entry; "" where nothing is."""
    name, count = entry["class"], entry["count"]
    if len(found) < count:
        return f"expected {name}>={count}, found {len(found)}"
    if "color" in entry:
        seen, wanted = list(colours(found)), entry["color"]
        if seen.count(wanted) < count:
            all_seen = ", ".join(f"{seen.count(colour)} {colour}" for colour in COLOURS if colour in seen)
            return f"expected {wanted} {name}>={count}, found {seen.count(wanted)} {wanted}; and {all_seen}"
    if "position" in entry:
        wanted, target = entry["position"]
        others = matched[target]
        if others is None:
            return f"no target for {name} to be {wanted}"
        for one in found:
            for other in others:
                true = relations(one, other)
                if wanted not in true:
                    return f"expected {name} {wanted} target, found {' and '.join(true)} target"
    return ""


def relations(first: Detection, second: Detection) -> list[str]:
    """Where an object is, seen from another one: none, one or two of `RELATIONS`."""
    boxes = np.array([first.box, second.box], np.float32).reshape(2, 2, 2)  # object, corner, axis
    centres = boxes.mean(axis=1)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    shorter = np.maximum(np.abs(offset) - POSITION_THRESHOLD * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if np.all(np.abs(shorter) < _NOTHING):
        return []
    dx, dy = shorter / np.linalg.norm(offset)
    holds = (dx < -_DIRECTION, dx > _DIRECTION, dy < -_DIRECTION, dy > _DIRECTION)
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]
