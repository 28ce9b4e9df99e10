"""Says whether pictures are what captions or edits asked for, with a classifier of things and the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..shapes.text import relation_of
from .classifier import classes, looks
from .rules import STRAY, Picture, counted, toned
from .sprites import emoji
from .text import Named, Spec
from .world import Scene, Thing

if TYPE_CHECKING:
    from PIL import Image

# Pictures of things, (B, S, S, 3) float32 in [0, 1], to their classes, the likeliest first, (B, N).
Rank = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What is right about a picture.

    Attributes:
        background: its colour.
        clean: there is nothing but the things, and each of them is there.
        size: of a single thing; True where no size was asked for.
        number: how many there are, where several of the same were asked for.
        ranks: how many classes are likelier than the best right one, for each thing; 0 is right.
        relation: where the first thing is, seen from the second; True where that is open.
        tone: of a hand's skin; True where it is open.
        seen: what each thing was taken for.
    """

    background: bool
    clean: bool
    size: bool
    number: bool
    ranks: tuple[int, ...]
    relation: bool
    tone: bool
    seen: tuple[str, ...]

    @property
    def things(self) -> bool:
        """All things that were asked for are there, wherever they are."""
        return all(rank == 0 for rank in self.ranks)

    @property
    def right(self) -> bool:
        parts = (self.background, self.clean, self.size, self.number, self.relation, self.tone)
        return self.things and all(parts)


def spec_of(scene: Scene) -> Spec:
    """A spec that only this scene is right for."""
    things = tuple(Named(frozenset({thing.index}), thing.size) for thing in scene.things)
    relation = None
    if len(things) == 2 and things[0] != things[1]:
        first, second = scene.things
        relation = relation_of(first.x - second.x, first.y - second.y)
    return Spec(things, scene.background, relation)


def judge(rank: Rank, asked: Sequence[tuple[Spec, Scene]], images: Sequence[Image.Image]) -> list[Verdict]:
    """The verdicts on pictures.

    Args:
        rank: the classifier.
        asked: what has to be true of each picture, and a scene of which it is true.
        images: one for each.
    """
    pictures = [Picture.of(image) for image in images]
    things = [_found(picture, scene) for picture, (_, scene) in zip(pictures, asked, strict=True)]
    cuts = [picture.cut(thing) for picture, some in zip(pictures, things, strict=True) for thing in some]
    ranked = iter(rank(np.stack(cuts)) if cuts else ())
    verdicts = []
    for picture, (spec, scene), found in zip(pictures, asked, things, strict=True):
        verdicts.append(_verdict(picture, spec, scene, found, [next(ranked) for _ in found]))
    return verdicts


def _found(picture: Picture, scene: Scene) -> tuple[Thing, ...]:
    """The things of the picture: those of the scene, but in the sizes, number or places that are found."""
    first = scene.things[0]
    if len(scene.things) == 1:
        return (Thing(first.index, first.x, first.y, picture.size_of(first)),)
    if _same(scene):
        return counted(first, picture.number_of(first), scene.background).things
    places = picture.places_of_two()
    return tuple(Thing(thing.index, x, y, "small") for thing, (x, y) in zip(scene.things, places, strict=True))


def _same(scene: Scene) -> bool:
    return len({thing.index for thing in scene.things}) == 1


def _verdict(
    picture: Picture, spec: Spec, scene: Scene, found: tuple[Thing, ...], ranked: Sequence[np.ndarray]
) -> Verdict:
    right_looks = [{int(looks()[classes()[index]]) for index in named.indices} for named in spec.things]
    size = number = relation = tone = True
    if len(scene.things) == 1:
        named = spec.things[0]
        size = named.size in (None, found[0].size)
        tone = _tone_is_open(named) or picture.tone_of(found[0]) == emoji(toned=True)[scene.things[0].index].tone
        ranks: tuple[int, ...] = (_rank(ranked[0], right_looks[0]),)
    elif _same(scene):
        number = len(found) == len(scene.things)
        ranks = tuple(_rank(one, right_looks[0]) for one in ranked)
    else:
        orders = [(0, 1), (1, 0)]
        by_order = [tuple(_rank(ranked[i], right_looks[k]) for k, i in enumerate(order)) for order in orders]
        best = min(range(2), key=lambda i: sum(one > 0 for one in by_order[i]))
        first, second = (found[i] for i in orders[best])
        relation = spec.relation in (None, relation_of(first.x - second.x, first.y - second.y))
        ranks = by_order[best]
    return Verdict(
        background=picture.background == spec.background,
        clean=picture.stray(found) <= STRAY,
        size=size,
        number=number,
        ranks=ranks,
        relation=relation,
        tone=tone,
        seen=tuple(emoji()[one[0]].name for one in ranked),
    )


def _tone_is_open(named: Named) -> bool:
    """Whether a hand in any skin tone is right, or it is no hand."""
    return all(set(toned(index)) <= named.indices for index in named.indices)


def _rank(ranked: np.ndarray, right: set[int]) -> int:
    return int(np.flatnonzero(np.isin(looks()[ranked], list(right)))[0])
