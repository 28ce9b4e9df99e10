"""Questions about scenes of emoji, with their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mobileo_mlx.errors import OptionError

from ..shapes.text import NUMBERS
from ..shapes.world import pick
from .names import Name, fitting, kinds, names
from .text import (
    COLOUR_WORDS,
    SIZE_WORDS,
    Style,
    all_descriptions,
    composable,
    counted,
    describe,
    sample_caption,
    tone_ending,
)
from .world import BACKGROUNDS, Scene, Thing

QUESTION_TYPES = ("name", "kind", "background", "count", "presence", "place", "where", "size", "describe")
# Answers, for the first and the second of two things in a row, and in a column.
SIDES = (("on the left", "on the right"), ("at the top", "at the bottom"))
# Where pictures of a kind may show things of another kind, nobody is asked whether these are there.
_ALIVE = frozenset(
    {"a face", "a person", "people", "an animal", "a cat", "a monkey", "a character", "a hand", "a skull"}
)
_VIEWS = frozenset({"a place", "a view", "a building", "a fairground ride"})
_SHOWN_BY = {
    **dict.fromkeys(("a body part", "a skull"), _ALIVE),
    **dict.fromkeys(("a hand", "clothing", "a hat", "a bag", "a tool", "a device"), _ALIVE - {"a hand"}),
    **dict.fromkeys(("a flower", "a plant", "a tree", "a building", "weather", "a moon", "a star"), _VIEWS),
    **dict.fromkeys(("furniture", "a flag", "a clock", "water", "a vehicle", "a light"), _VIEWS | {"a vehicle"}),
    "a heart": _ALIVE | _VIEWS | {"a letter"},
    "food": frozenset({"food", "a drink", "tableware"}),
    "a fruit": frozenset({"food", "a drink"}),
}
# How often the mark at a question's end is left out.
UNMARKED = 0.05


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        answer: the one to train on.
        accepted: all that are right; `answer` is one of them.
        kind: one of `QUESTION_TYPES`.
    """

    text: str
    answer: str
    accepted: frozenset[str]
    kind: str
    scene: Scene


def sample_question(
    rng: np.random.Generator, kind: str | None = None, *, held_out: bool | None = False, plain: bool = False
) -> Question:
    """A question of a kind (by default any) about a scene that suits it.

    Args:
        rng: where all randomness comes from.
        kind: of `QUESTION_TYPES`.
        held_out: see `text`; if it is True, the scene shows one of them beside others or several times.
        plain: as for `sample_caption`.

    Raises:
        OptionError: it is a question about single things only, and `held_out`.
    """
    possible = [each for each in QUESTION_TYPES if not held_out or _COMPOSED & _SCENES_FOR[each].keys()]
    kind = pick(rng, possible) if kind is None else kind
    if kind not in possible:
        raise OptionError(f"questions about the {kind} are about single things only; choose another kind.")
    weights = {each: share for each, share in _SCENES_FOR[kind].items() if not held_out or each in _COMPOSED}
    shares = np.array(list(weights.values()))
    while True:
        category = str(rng.choice(list(weights), p=shares / shares.sum()))
        scene = sample_caption(rng, category, held_out=held_out, plain=True).scene
        if kind == "background":
            scene = replace(scene, background=pick(rng, tuple(BACKGROUNDS)))
        question = _QUESTIONS[kind](Style(rng, plain), scene)
        if question is not None:
            return question


_COMPOSED = {"two", "position", "count"}
_ANY = {"single": 0.1, "background": 0.2, "size": 0.1, "tone": 0.05, "two": 0.2, "position": 0.2, "count": 0.15}
_SCENES_FOR = {
    "name": {"single": 0.3, "background": 0.4, "size": 0.1, "tone": 0.05, "count": 0.15},
    "kind": {"single": 0.35, "background": 0.45, "size": 0.2},
    "background": _ANY,
    "count": {"single": 0.1, "background": 0.1, "size": 0.05, "two": 0.15, "position": 0.1, "count": 0.5},
    "presence": _ANY,
    "place": {"two": 0.4, "position": 0.6},
    "where": {"two": 0.4, "position": 0.6},
    "size": {"single": 0.1, "background": 0.15, "size": 0.75},
    "describe": _ANY,
}


def _question(style: Style, kind: str, scene: Scene, text: str, answer: str, *accepted: str) -> Question:
    mark = "." if text.startswith("describe") else "?"
    text = style.capital(text) + ("" if style.sometimes(UNMARKED) else mark)
    return Question(text, answer, frozenset({answer, *accepted}), kind, scene)


def _called(thing: Thing) -> list[str]:
    """What a thing is called, the best first, with and without an article and a skin tone."""
    names_of_it = fitting()[thing.index]
    phrases = [name.phrase() for name in names_of_it] + [name.noun for name in names_of_it]
    return [phrase + tone_ending(thing.index, phrase) for phrase in phrases] + phrases


def _plurals(thing: Thing, its_names: Mapping[int, tuple[Name, ...]]) -> list[Name]:
    """The names of a thing that have a plural."""
    return [name for name in its_names[thing.index] if name.plural]


def _ask_name(style: Style, scene: Scene) -> Question | None:
    things = scene.things
    if len(things) == 1:
        text = style.word(("what is it", "what is this", "what is in the image", "what do you see"))
        return _question(style, "name", scene, text, *_called(things[0]))
    plurals = [str(name.plural) for name in _plurals(things[0], fitting())]
    if not plurals or len({thing.index for thing in things}) > 1:
        return None
    return _question(style, "name", scene, style.word(("what are they", "what are these")), *plurals)


def _ask_kind(style: Style, scene: Scene) -> Question | None:
    if len(scene.things) > 1:
        return None
    found = kinds()[scene.things[0].index]
    bare = [each.removeprefix("an ").removeprefix("a ") for each in found]
    text = style.word(("what kind of thing is it", "what kind of thing is this"))
    return _question(style, "kind", scene, text, *found, *bare)


def _ask_background(style: Style, scene: Scene) -> Question:
    words = COLOUR_WORDS.get(scene.background, ())
    return _question(style, "background", scene, "what color is the background", scene.background, *words)


def _ask_count(style: Style, scene: Scene) -> Question:
    number, plurals = len(scene.things), _plurals(pick(style.rng, scene.things), names())
    if plurals and style.rng.random() < 0.5:
        name = pick(style.rng, plurals)
        number, asked = sum(thing.index in name.indices for thing in scene.things), str(name.plural)
    else:
        asked = style.word(("things", "objects", "items", "emoji"))
    return _question(style, "count", scene, f"how many {asked} are there", NUMBERS[number - 1], str(number))


def _ask_presence(style: Style, scene: Scene) -> Question:
    thing = pick(style.rng, scene.things)
    several = len(scene.things) > 1 and len({each.index for each in scene.things}) == 1
    present = style.rng.random() < 0.5
    if present:
        name = style.counted(thing.index) if several else style.name(thing.index)
    else:
        name = _absent(style, scene, several)
    subject = f"are there {name.plural}" if several else f"{_is(name)} there {name.phrase()}"
    return _question(style, "presence", scene, subject, "yes" if present else "no")


def _absent(style: Style, scene: Scene, several: bool) -> Name:
    """A name of something else, half of the time of the same kind as a thing that is there."""
    others = counted() if several else composable()
    kind = kinds()[pick(style.rng, scene.things).index]
    alike = [index for index in others if kinds()[index] == kind]
    while True:
        index = pick(style.rng, alike if alike and style.rng.random() < 0.5 else others)
        name = style.counted(index) if several else style.name(index)
        if not any(_may_show(each, name) for each in scene.things):
            return name


def _may_show(thing: Thing, name: Name) -> bool:
    """Whether the picture of a thing may show what a name means: where there is a farmer, there is a person."""
    its_kinds = kinds()[thing.index]
    of_such_kinds = _SHOWN_BY.get(kinds()[name.index][0], frozenset()) & set(its_kinds)
    return thing.index in name.indices or name.phrase() in its_kinds or bool(of_such_kinds)


def _ask_place(style: Style, scene: Scene) -> Question | None:
    sides = _sides(scene)
    if sides is None:
        return None
    index = int(style.rng.integers(2))
    return _question(style, "place", scene, f"what is {sides[index]}", *_called(scene.things[index]))


def _ask_where(style: Style, scene: Scene) -> Question | None:
    sides = _sides(scene)
    if sides is None:
        return None
    index = int(style.rng.integers(2))
    name = style.name(scene.things[index].index)
    if scene.things[1 - index].index in name.indices:
        return None
    side = sides[index]
    text = f"where {_is(name)} {name.definite}"
    return _question(style, "where", scene, text, side, side.rpartition(" ")[2])


def _sides(scene: Scene) -> tuple[str, str] | None:
    """Where each of two different things is."""
    if len(scene.things) != 2 or scene.things[0].index == scene.things[1].index:
        return None
    first, second = scene.things
    before, after = SIDES[0] if first.y == second.y else SIDES[1]
    return (before, after) if (first.x, first.y) < (second.x, second.y) else (after, before)


def _ask_size(style: Style, scene: Scene) -> Question | None:
    if len(scene.things) > 1:
        return None
    size = scene.things[0].size
    return _question(style, "size", scene, "is it small or large", size, *SIZE_WORDS.get(size, ()))


def _ask_description(style: Style, scene: Scene) -> Question | None:
    answer = describe(scene)
    if answer is None:
        return None
    texts = ["describe the image", "describe the picture"]
    if len(scene.things) > 1:  # of a single thing, only its name is asked for so
        texts += ["what is in the image", "what do you see"]
    return _question(style, "describe", scene, style.word(tuple(texts)), answer, *all_descriptions(scene))


def _is(name: Name) -> str:
    return "are" if name.is_several else "is"


_QUESTIONS: dict[str, Callable[[Style, Scene], Question | None]] = {
    "name": _ask_name,
    "kind": _ask_kind,
    "background": _ask_background,
    "count": _ask_count,
    "presence": _ask_presence,
    "place": _ask_place,
    "where": _ask_where,
    "size": _ask_size,
    "describe": _ask_description,
}
