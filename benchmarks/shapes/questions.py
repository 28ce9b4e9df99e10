"""Questions about scenes, with their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mobileo_mlx.errors import OptionError

from .text import NUMBERS, OPPOSITES, RELATIONS, a, all_descriptions, describe, noun_phrase, plural, relation_between
from .world import WORLD, Object, Pair, Scene, World, pick, sample_scene

QUESTION_TYPES = ("colour", "shape", "count", "presence", "relation", "where", "background", "describe")
PLACES = {"to the left of": "to the left", "to the right of": "to the right", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        answer: the one to train on.
        accepted: all that are right; `answer` is one of them.
        kind: one of `QUESTION_TYPES`.
        pairs: the objects that it is about, and the pair that it mentions.
    """

    text: str
    answer: str
    accepted: frozenset[str]
    kind: str
    scene: Scene
    pairs: frozenset[Pair]


def sample_question(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    held_out: bool | None = False,
    world: World = WORLD,
) -> Question:
    """A question of a kind (by default any) about a scene that suits it; none is about a background if `held_out`.

    Raises:
        OptionError: that combination is asked for all the same.
    """
    if held_out and kind == "background":
        raise OptionError("a question about the background names no held-out pair; choose another kind.")
    kinds = tuple(name for name in QUESTION_TYPES if not (held_out and name == "background"))
    kind = pick(rng, kinds) if kind is None else kind
    categories, weights = zip(*_SCENES_FOR[kind].items(), strict=True)
    while True:
        scene = sample_scene(
            rng,
            str(rng.choice(categories, p=weights)),
            background=None if kind == "background" or rng.random() < 0.4 else "white",
            held_out=held_out,
            world=world,
        )
        question = _QUESTIONS[kind](rng, scene, world)
        if question is not None and world.allows(question.pairs, held_out):
            return question


def questions_about(
    rng: np.random.Generator, scene: Scene, *, held_out: bool | None = False, world: World = WORLD
) -> list[Question]:
    """One question of each kind that can be asked about a scene."""
    questions = (_QUESTIONS[kind](rng, scene, world) for kind in QUESTION_TYPES)
    return [question for question in questions if question is not None and world.allows(question.pairs, held_out)]


_SCENES_FOR: dict[str, dict[str, float]] = {
    "colour": {"single": 0.25, "two": 0.2, "position": 0.35, "count": 0.2},
    "shape": {"single": 0.3, "two": 0.3, "position": 0.4},
    "count": {"single": 0.1, "two": 0.1, "position": 0.1, "count": 0.7},
    "presence": {"single": 0.2, "two": 0.2, "position": 0.4, "count": 0.2},
    "relation": {"two": 0.1, "position": 0.9},
    "where": {"position": 1.0},
    "background": {"single": 0.3, "two": 0.2, "position": 0.3, "count": 0.2},
    "describe": {"single": 0.25, "two": 0.2, "position": 0.35, "count": 0.2},
}


def _only(scene: Scene, *, shape: str | None = None, colour: str | None = None) -> list[Object]:
    return [thing for thing in scene.objects if shape in (None, thing.shape) and colour in (None, thing.colour)]


def _question(text: str, answer: str, kind: str, scene: Scene, *pairs: Pair) -> Question:
    return Question(text, answer, frozenset({answer}), kind, scene, frozenset(pairs))


def _ask_colour(rng: np.random.Generator, scene: Scene, world: World) -> Question | None:
    thing = pick(rng, scene.objects)
    same = _only(scene, shape=thing.shape)
    if len({other.colour for other in same}) > 1:
        return None
    subject = f"is the {thing.shape}" if len(same) == 1 else f"are the {plural(thing.shape)}"
    return _question(f"what color {subject}?", thing.colour, "colour", scene, thing.pair)


def _ask_shape(rng: np.random.Generator, scene: Scene, world: World) -> Question | None:
    thing = pick(rng, scene.objects)
    if len(_only(scene, colour=thing.colour)) > 1:
        return None
    return _question(f"what shape is the {thing.colour} object?", thing.shape, "shape", scene, thing.pair)


def _ask_count(rng: np.random.Generator, scene: Scene, world: World) -> Question:
    if rng.random() < 0.4:
        return _question(
            "how many objects are there?", NUMBERS[len(scene.objects) - 1], "count", scene, *sorted(scene.pairs)
        )
    shape = pick(rng, scene.objects).shape
    same = _only(scene, shape=shape)
    text = f"how many {plural(shape)} are there?"
    return _question(text, NUMBERS[len(same) - 1], "count", scene, *(thing.pair for thing in same))


def _ask_presence(rng: np.random.Generator, scene: Scene, world: World) -> Question:
    thing = pick(rng, scene.objects)
    present, coloured = rng.random() < 0.5, rng.random() < 0.5
    shape, colour = thing.pair
    while not present and _only(scene, shape=shape, colour=colour if coloured else None):
        # Half of the absent pairs differ from an object of the scene in one respect only.
        changed = pick(rng, ("shape", "colour", "both", "both")) if coloured else "shape"
        shape = thing.shape if changed == "colour" else pick(rng, world.shapes)
        colour = thing.colour if changed == "shape" else pick(rng, world.colours)
    text = f"is there {a(noun_phrase(shape, colour if coloured else None))}?"
    return _question(text, "yes" if present else "no", "presence", scene, thing.pair, (shape, colour))


def _ask_relation(rng: np.random.Generator, scene: Scene, world: World) -> Question | None:
    if not _comparable(scene):
        return None
    first, second = scene.objects if rng.random() < 0.5 else scene.objects[::-1]
    true = relation_between(first, second)
    said = true
    if rng.random() < 0.5:
        others = [relation for relation in RELATIONS if relation not in (true, OPPOSITES[true])]
        said = OPPOSITES[true] if rng.random() < 0.6 else pick(rng, others)
    text = f"is the {first.shape} {said} the {second.shape}?"
    return _question(text, "yes" if said == true else "no", "relation", scene, first.pair, second.pair)


def _ask_where(rng: np.random.Generator, scene: Scene, world: World) -> Question | None:
    if not _comparable(scene):
        return None
    first, second = scene.objects if rng.random() < 0.5 else scene.objects[::-1]
    text = f"where is the {first.shape} relative to the {second.shape}?"
    return _question(text, PLACES[relation_between(first, second)], "where", scene, first.pair, second.pair)


def _ask_background(rng: np.random.Generator, scene: Scene, world: World) -> Question:
    return _question("what color is the background?", scene.background, "background", scene)


def _ask_description(rng: np.random.Generator, scene: Scene, world: World) -> Question | None:
    answer = describe(scene)
    if answer is None:
        return None
    return Question("describe the image.", answer, all_descriptions(scene), "describe", scene, scene.pairs)


def _comparable(scene: Scene) -> bool:
    return len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape


_QUESTIONS: dict[str, Callable[[np.random.Generator, Scene, World], Question | None]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "presence": _ask_presence,
    "relation": _ask_relation,
    "where": _ask_where,
    "background": _ask_background,
    "describe": _ask_description,
}
