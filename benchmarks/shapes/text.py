"""Captions of the shapes world and its words. Truth is attached to every text: nothing is ever parsed.

Here and in `questions` and `edits` an argument `held_out` is False for training (no held-out pair is shown or
mentioned), True for samples that are about at least one of them, and None for whatever comes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .world import BACKGROUNDS, WORLD, Object, Scene, World, pick, sample_scene

# What has many layouts takes longest: how many objects there are is decided by the noise alone.
MIXTURE = {"single": 0.2, "two": 0.2, "count": 0.25, "position": 0.35}
NUMBERS = ("one", "two", "three", "four")
OPPOSITES = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(OPPOSITES)


@dataclass(frozen=True)
class Spec:
    """What a caption says.

    Attributes:
        objects: shape and, where it is named, colour of each object.
        background: white where none is named.
        relation: where the first object is, seen from the second.
    """

    objects: tuple[tuple[str, str | None], ...]
    background: str = "white"
    relation: str | None = None


@dataclass(frozen=True)
class Caption:
    """`text` says `spec`, and is true of `scene`; `category` is one of `world.CATEGORIES`."""

    text: str
    spec: Spec
    scene: Scene
    category: str


def a(words: str) -> str:
    """With its article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def noun_phrase(shape: str, colour: str | None) -> str:
    return shape if colour is None else f"{colour} {shape}"


def relation_of(dx: float, dy: float) -> str:
    """Where a thing is that lies (dx, dy) from another; the larger of both decides."""
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def relation_between(first: Object, second: Object) -> str:
    return relation_of(first.x - second.x, first.y - second.y)


def sample_caption(
    rng: np.random.Generator,
    category: str | None = None,
    *,
    coloured: bool | None = None,
    uncoloured: float = 0.3,
    named_background: float = 0.25,
    held_out: bool | None = False,
    world: World = WORLD,
) -> Caption:
    """A caption, and a scene that it describes.

    Args:
        rng: where all randomness comes from.
        category: of `world.CATEGORIES`; by default one as likely as in `MIXTURE`.
        coloured: whether colours are named; by default mostly, and always in counts and with `held_out`.
        uncoloured: how often they are not, where that is open.
        named_background: how often a background is named; otherwise it is white.
        held_out: see above.
        world: the names to choose from.
    """
    if category is None:
        category = str(rng.choice(list(MIXTURE), p=list(MIXTURE.values())))
    if coloured is None:
        named = (True, True)
        if category != "count" and not held_out and rng.random() < uncoloured:
            # A relation may also name the colour of one object only.
            one = category == "position" and rng.random() < 1 / 3
            named = pick(rng, [(True, False), (False, True)]) if one else (False, False)
    else:
        named = (coloured, coloured)
    name_it = rng.random() < named_background
    scene = sample_scene(
        rng,
        category,
        background=None if name_it else "white",
        distinct_shapes=not all(named),
        held_out=held_out,
        world=world,
    )
    things = tuple(
        (thing.shape, thing.colour if says else None)
        for thing, says in zip(scene.objects, named if category != "count" else (True,) * 4, strict=False)
    )
    relation = relation_between(scene.objects[0], scene.objects[1]) if category == "position" else None
    text = _caption(things, relation, counted=category == "count")
    if name_it:
        text += _ending(scene.background)
    return Caption(text, Spec(things, scene.background, relation), scene, category)


def describe(scene: Scene) -> str | None:
    """The caption of a scene: a row is "X and Y", a column "X above Y"; None for other mixtures of objects."""
    things = scene.objects
    if len(scene.pairs) == 1:
        text = _caption(tuple(thing.pair for thing in things), None, counted=len(things) > 1)
    elif len(things) == 2:
        first, second = sorted(things, key=lambda thing: (thing.x, thing.y))
        relation = relation_between(first, second)
        text = _caption((first.pair, second.pair), "above" if relation == "above" else None)
    else:
        return None
    return text if scene.background == "white" else text + _ending(scene.background)


def all_descriptions(scene: Scene) -> frozenset[str]:
    """All captions that are true and complete, with every colour, and the background where it is not white."""
    things = scene.objects
    texts = set()
    if len(scene.pairs) == 1:
        texts.add(_caption(tuple(thing.pair for thing in things), None, counted=True))
        if len(things) == 1:
            texts.add(_caption((things[0].pair,), None))
    elif len(things) == 2:
        for first, second in (things, things[::-1]):
            pairs = (first.pair, second.pair)
            texts |= {_caption(pairs, None), _caption(pairs, relation_between(first, second))}
    ended = {text + _ending(scene.background) for text in texts}
    return frozenset(texts | ended if scene.background == "white" else ended)


def _caption(things: tuple[tuple[str, str | None], ...], relation: str | None, *, counted: bool = False) -> str:
    shape, colour = things[0]
    if counted:
        return f"{NUMBERS[len(things) - 1]} {noun_phrase(plural(shape) if len(things) > 1 else shape, colour)}"
    phrases = [a(noun_phrase(*thing)) for thing in things]
    return f" {relation or 'and'} ".join(phrases)


def _ending(background: str) -> str:
    return f" on {a(background)} background"


def vocabulary(world: World = WORLD) -> list[str]:
    """All words of captions, questions, answers and edits, and "?" and "." as words of their own, sorted."""
    texts = [
        *(f"{a(colour)} {shape} {plural(shape)}" for shape in world.shapes for colour in world.colours),
        *NUMBERS, *RELATIONS, *BACKGROUNDS, *_TEMPLATE_WORDS,
    ]  # fmt: skip
    return sorted({word for text in texts for word in split_words(text)})


def split_words(text: str) -> list[str]:
    """Words and marks of punctuation."""
    return re.findall(r"\w+|[^\w\s]", text)


_TEMPLATE_WORDS = (
    "a an and on background", "what color is the ? are", "what shape is the object ?", "how many objects are there ?",
    "is there a ? yes no", "where is the relative to the ?", "describe the image .", "make the", "change the into a",
    "remove the", "add a", "change the background to",
)  # fmt: skip
