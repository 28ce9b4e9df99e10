"""Reads the objects of a picture, and says whether the picture is what was asked for.

- The ground is the median of the two outermost rows and columns on each side.
- The foreground is what differs from it by more than 100, summed over the channels.
- Objects are its 4-connected components of at least 0.6 % of the area. Their colour is the one nearest to their
  median. Their shape is the one that, drawn to fill their box, has the largest intersection over union with them; below
  0.8 they have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .edits import Edit
from .text import Spec, relation_of
from .world import BACKGROUNDS, RGB, UNITS, WORLD, Object, World, box_masks

BORDER = 2  # pixels
FOREGROUND = 100  # of 765
SMALLEST = 0.006  # of the image's area
SHAPE_IOU = 0.8
IN_PLACE = 1 / 16  # of the side: how far an untouched object's centre may move, a quarter of the grid's step


@dataclass(frozen=True)
class DetectedObject:
    """A component.

    Attributes:
        shape: None where it is like no shape.
        x, y: centre of its box, in sides of the image.
        width, height: of its box, in sides of the image.
        iou: of the most similar shape.
    """

    shape: str | None
    colour: str
    x: float
    y: float
    width: float
    height: float
    iou: float


@dataclass(frozen=True)
class Reading:
    """All that was read from a picture."""

    objects: tuple[DetectedObject, ...]
    background: str


def read_picture(pixels: np.ndarray, *, world: World = WORLD) -> Reading:
    """Reads a picture.

    Args:
        pixels: (H, W, 3) uint8 sRGB.
        world: the names to choose from.
    """
    height, width = pixels.shape[:2]
    levels = pixels.astype(np.int16)
    inner = np.zeros((height, width), bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    ground = np.median(levels[~inner], axis=0)
    foreground = np.abs(levels - ground).sum(axis=-1) > FOREGROUND
    found = []
    for rows, columns in components(foreground):
        if rows.size < SMALLEST * height * width:
            continue
        top, left = rows.min(), columns.min()
        box_height, box_width = int(rows.max() - top + 1), int(columns.max() - left + 1)
        mask = np.zeros((box_height, box_width), bool)
        mask[rows - top, columns - left] = True
        ious = {shape: _best_iou(mask, box_masks(shape, box_width, box_height)) for shape in world.shapes}
        best = max(ious, key=ious.__getitem__)
        found.append(
            DetectedObject(
                shape=best if ious[best] >= SHAPE_IOU else None,
                colour=_nearest(np.median(levels[rows, columns], axis=0), world.colours),
                x=float(left + box_width / 2) / width,
                y=float(top + box_height / 2) / height,
                width=box_width / width,
                height=box_height / height,
                iou=ious[best],
            )
        )
    return Reading(tuple(found), _nearest(ground, BACKGROUNDS))


def components(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows and columns of the pixels of each 4-connected component of a (H, W) bool mask.

    Works on horizontal runs: a run joins those of the row above that it overlaps.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    # In the flattened, padded mask a run starts where the value rises and stops where it falls.
    edges = np.flatnonzero(np.diff(padded.ravel())) + 1
    starts, stops = edges[::2], edges[1::2]
    run_rows = starts // (width + 2)
    parent = list(range(len(starts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    lefts, rights, rows = (starts % (width + 2)).tolist(), (stops % (width + 2)).tolist(), run_rows.tolist()
    above = 0
    for i, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and rights[above] <= lefts[i]):
            above += 1
        other = above
        while rows[other] == row - 1 and lefts[other] < rights[i]:
            parent[root(i)] = root(other)
            other += 1
    members: dict[int, list[int]] = {}
    for i in range(len(parent)):
        members.setdefault(root(i), []).append(i)
    result = []
    for runs in members.values():
        at = np.concatenate([np.arange(starts[i], stops[i]) for i in runs])
        result.append((at // (width + 2), at % (width + 2) - 1))
    return result


def satisfies(reading: Reading, spec: Spec) -> bool:
    """Whether a picture is what a caption says: all named shapes and colours, no more objects, relation, ground."""
    return reading.background == spec.background and shows(reading, spec) and keeps_relation(reading, spec)


def shows(reading: Reading, spec: Spec) -> bool:
    """Whether the objects are right, wherever they are and whatever the ground."""
    return any(True for _ in _matches(reading, spec))


def keeps_relation(reading: Reading, spec: Spec) -> bool:
    """Whether the objects are right, and where the caption says they are."""
    return any(
        spec.relation is None or spec.relation == relation_of(found[0].x - found[1].x, found[0].y - found[1].y)
        for found in _matches(reading, spec)
    )


def shows_colours(reading: Reading, spec: Spec) -> bool:
    """Whether there are as many objects as named, in the named colours, whatever their shapes."""
    return sorted(found.colour for found in reading.objects) == sorted(str(colour) for _, colour in spec.objects)


def edit_succeeded(reading: Reading, edit: Edit) -> bool:
    """Whether a picture is the edited scene, with every object in its place; an added one may be anywhere."""
    things = edit.after.objects
    if reading.background != edit.after.background or len(reading.objects) != len(things):
        return False
    anywhere = set(things) - set(edit.before.objects) if edit.kind == "add" else set()
    return any(
        all(
            (found.shape, found.colour) == thing.pair and (thing in anywhere or _in_place(found, thing))
            for found, thing in zip(order, things, strict=True)
        )
        for order in itertools.permutations(reading.objects)
    )


def _matches(reading: Reading, spec: Spec) -> Iterator[tuple[DetectedObject, ...]]:
    """All orders of the objects in which each is what the caption names."""
    # A spoilt picture may have dozens of components; only as many as named are ever put in order.
    if len(reading.objects) == len(spec.objects):
        for order in itertools.permutations(reading.objects):
            if all(
                found.shape == shape and colour in (None, found.colour)
                for found, (shape, colour) in zip(order, spec.objects, strict=True)
            ):
                yield order


def _in_place(found: DetectedObject, thing: Object) -> bool:
    return max(abs(found.x - thing.x / UNITS), abs(found.y - thing.y / UNITS)) <= IN_PLACE


def _nearest(colour: np.ndarray, names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: float(np.square(colour - np.array(RGB[name])).sum()))


def _best_iou(mask: np.ndarray, candidates: np.ndarray) -> float:
    return float(((candidates & mask).sum(axis=(1, 2)) / (candidates | mask).sum(axis=(1, 2))).max())
