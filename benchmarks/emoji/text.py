"""Captions of emoji. Truth is attached to every text: nothing is ever parsed.

Here and in `questions` and `edits` an argument `held_out` is False for training (no emoji of `names.HELD_OUT` is shown
beside others or several times, or named in such a text), True for samples that are about at least one of them, and None
for whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from ..shapes.text import NUMBERS, OPPOSITES, a, relation_of
from ..shapes.world import pick
from .names import Name, fitting, kinds, names
from .names import held_out as held_out_indices
from .sprites import TONES, emoji
from .world import BACKGROUNDS, CENTRE, COLUMN, COUNTS, ROW, Scene, Thing

CATEGORIES = ("single", "background", "size", "tone", "two", "position", "count")
MIXTURE = dict(zip(CATEGORIES, (0.2, 0.2, 0.08, 0.02, 0.2, 0.15, 0.15), strict=True))
# How often a name is another one than the emoji's own, where it has others, and a background is named.
OTHER_NAME, NAMED_BACKGROUND = 0.4, 0.25
# How people type: without articles; with a capital letter; with a full stop.
BARE, CAPITAL, STOP = 0.08, 0.1, 0.1

# Other words for the same, and how often they are used.
OTHER_WORDS = 0.2
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big")}
RELATION_WORDS = {
    "to the left of": ("to the left of", "left of"),
    "to the right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
JOINTS = ("and", "next to", "beside")
COLOUR_WORDS = {"gray": ("gray", "grey")}
DIGITS = ("1", "2", "3", "4")
# Where the first of two things is.
PLACES = {"to the left of": ROW, "to the right of": ROW[::-1], "above": COLUMN, "below": COLUMN[::-1]}


@dataclass(frozen=True)
class Named:
    """A thing of a caption.

    Attributes:
        indices: the emoji that its name fits, as indices into `sprites.emoji(toned=True)`.
        size: None where it is not said.
    """

    indices: frozenset[int]
    size: str | None = None


@dataclass(frozen=True)
class Spec:
    """What a caption says.

    Attributes:
        things: in the order in which they are named.
        background: white where none is named.
        relation: where the first thing is, seen from the second, of `OPPOSITES`; None where it is not said.
    """

    things: tuple[Named, ...]
    background: str = "white"
    relation: str | None = None


@dataclass(frozen=True)
class Caption:
    """`text` says `spec`, and is true of `scene`, whose things are in its order; `category` is of `CATEGORIES`."""

    text: str
    spec: Spec
    scene: Scene
    category: str


def sample_caption(
    rng: np.random.Generator, category: str | None = None, *, held_out: bool | None = False, plain: bool = False
) -> Caption:
    """A caption, and the scene that it describes.

    Args:
        rng: where all randomness comes from.
        category: of `CATEGORIES`; by default one as likely as in `MIXTURE`.
        held_out: see above; of single things all are shown, unless it is True.
        plain: the emoji's own names and the first of all words for the same, with articles, in lower case.
    """
    if category is None:
        category = str(rng.choice(CATEGORIES, p=list(MIXTURE.values())))
    style = Style(rng, plain)
    background = "white"
    if category == "background" or (category != "single" and rng.random() < NAMED_BACKGROUND):
        background = pick(rng, tuple(BACKGROUNDS))
        ending = style.ending(background)
    else:
        ending = ""
    relation = None
    named: tuple[Named, ...]
    things: tuple[Thing, ...]
    if category in ("single", "background"):
        name = style.name(pick(rng, alone(held_out)))
        named, text = (Named(name.indices),), style.phrase(name)
        things = (Thing(name.index, *CENTRE),)
    elif category == "size":
        name = style.name(pick(rng, sizable(held_out)), lambda name: name.determiner != "the")
        size = pick(rng, tuple(SIZE_WORDS))
        named, text = (Named(name.indices, size),), style.phrase(name, style.word(SIZE_WORDS[size]))
        things = (Thing(name.index, *CENTRE, size),)
    elif category == "tone":
        index = pick(rng, toned())
        name = style.name(index)
        text, things = style.phrase(name), (Thing(index, *CENTRE),)
        text += tone_ending(index, text)
        tone = emoji(toned=True)[index].tone
        named = (Named(frozenset(i for i in name.indices if emoji(toned=True)[i].tone == tone)),)
    elif category == "count":
        name = style.counted(pick(rng, counted(held_out)))
        number = int(rng.integers(2, 5))
        named = (Named(name.indices),) * number
        text = f"{style.number(number)} {name.plural}"
        things = tuple(Thing(name.index, x, y, "small") for x, y in COUNTS[number])
    else:
        first, second = style.two_names(held_out)
        if category == "position":
            relation = pick(rng, tuple(OPPOSITES))
            joint, places = style.word(RELATION_WORDS[relation]), PLACES[relation]
        else:
            joint, places = pick(rng, JOINTS[:2] if plain else JOINTS), ROW
        named = (Named(first.indices), Named(second.indices))
        text = f"{style.phrase(first)} {joint} {style.phrase(second)}"
        things = tuple(Thing(each.index, x, y, "small") for each, (x, y) in zip((first, second), places, strict=True))
    return Caption(style.typed(text + ending), Spec(named, background, relation), Scene(things, background), category)


class Style:
    """How one text is worded: drawn once for all of its parts.

    Args:
        rng: where all randomness comes from.
        plain: always in the same way.
    """

    def __init__(self, rng: np.random.Generator, plain: bool = False) -> None:
        self.rng = rng
        self.plain = plain
        self.bare = not plain and rng.random() < BARE

    def word(self, words: tuple[str, ...]) -> str:
        """The first of several words for the same, or another one."""
        return pick(self.rng, words[1:]) if len(words) > 1 and self.sometimes(OTHER_WORDS) else words[0]

    def name(self, index: int, suits: Callable[[Name], bool] = lambda name: True) -> Name:
        """A name of an emoji, its own or another one; there must be one that suits."""
        own, *others = [name for name in names()[index] if suits(name)]
        return pick(self.rng, others) if others and self.sometimes(OTHER_NAME) else own

    def counted(self, index: int) -> Name:
        """A name that has a plural."""
        return self.name(index, lambda name: name.plural is not None)

    def two_names(self, held_out: bool | None) -> tuple[Name, Name]:
        """Of two things; neither name fits the other thing."""
        composed = composable(held_out)
        while True:
            first = self.name(pick(self.rng, composed))
            second = self.name(pick(self.rng, composable(None if held_out else held_out)))
            if first.index not in second.indices and second.index not in first.indices:
                return (first, second) if self.rng.random() < 0.5 else (second, first)

    def phrase(self, name: Name, adjective: str = "") -> str:
        return f"{adjective} {name.noun}".strip() if self.bare else name.phrase(adjective)

    def number(self, number: int) -> str:
        return self.word((NUMBERS[number - 1], DIGITS[number - 1]))

    def colour(self, background: str) -> str:
        return self.word(COLOUR_WORDS.get(background, (background,)))

    def ending(self, background: str) -> str:
        """What names a background at the end of a caption."""
        colour = self.colour(background)
        if self.bare:
            return f" on {colour} background"
        return self.word(_endings(colour))

    def typed(self, text: str) -> str:
        """With a capital letter and with a full stop, at times."""
        text = self.capital(text)
        return f"{text}." if self.sometimes(STOP) else text

    def capital(self, text: str) -> str:
        """With a capital letter, at times."""
        return text[0].upper() + text[1:] if self.sometimes(CAPITAL) else text

    def sometimes(self, share: float) -> bool:
        """True as often as `share` says, and never in a plain text."""
        return not self.plain and self.rng.random() < share


def wording() -> tuple[list[str], list[str]]:
    """All words, in texts: those that begin questions and answers, and those that follow a space.

    What begins captions and edits follows one too, in the prompt.
    """
    every = dict.fromkeys(name for index in alone(None) for name in names()[index])
    nouns = [text for name in every for text in (name.noun, name.plural) if text]
    answers = [each for found in kinds().values() for each in found]
    others = [word for words in (*SIZE_WORDS.values(), *RELATION_WORDS.values(), JOINTS) for word in words]
    colours = [*BACKGROUNDS, *(word for words in COLOUR_WORDS.values() for word in words)]
    counts = [*NUMBERS, *DIGITS]
    asking, in_questions = _QUESTIONS
    telling, in_others = _CAPTIONS_AND_EDITS
    openings = [*asking, *map(str.capitalize, asking), *_ANSWERS, *answers, *NUMBERS, *colours]
    starts = [*telling, *NUMBERS]
    followings = [
        *nouns,
        *answers,
        *others,
        *colours,
        *counts,
        *TONES,
        *starts,
        *map(str.capitalize, starts),
        in_questions,
        in_others,
    ]
    return list(dict.fromkeys(openings)), list(dict.fromkeys(followings))


# Words that begin texts, and those that follow.
_QUESTIONS = (
    ("what", "how", "is", "are", "describe", "where"),
    "is are it this in the image do you see they these kind of thing background color many things objects items emoji "
    "there where on at left right top bottom side small large picture ? .",
)
_CAPTIONS_AND_EDITS = (
    ("a", "an", "the", "change", "make", "turn", "replace", "add", "remove", "put", "give"),
    "the background to into with it larger smaller bigger skin tone and another on in , . !",
)
_ANSWERS = ("a", "an", "the", "yes", "no", "on the", "small", "large", "normal")


def tone_ending(index: int, said: str) -> str:
    """What names the skin tone of an emoji after `said`; nothing for the usual one."""
    tone = emoji(toned=True)[index].tone
    return "" if tone is None else f" {'and' if ' with ' in said else 'with'} {tone} skin"


def describe(scene: Scene) -> str | None:
    """The plain caption of a scene: a row is "X and Y", a column "X above Y"; None where a mixture has none."""
    things = scene.things
    indices = {thing.index for thing in things}
    if not indices <= names().keys():
        return None
    plurals = [name.plural for name in names()[things[0].index] if name.plural]
    if len(things) == 1:
        text = names()[things[0].index][0].phrase("" if things[0].size == "normal" else things[0].size)
        text += tone_ending(things[0].index, text)
    elif len(indices) == 1 and plurals:
        text = f"{NUMBERS[len(things) - 1]} {plurals[0]}"
    elif len(indices) == len(things) == 2:
        before, after = sorted(things, key=lambda thing: (thing.x, thing.y))
        joint = "and" if before.x < after.x else "above"
        text = f"{names()[before.index][0].phrase()} {joint} {names()[after.index][0].phrase()}"
    else:
        return None
    return text if scene.background == "white" else f"{text} on {a(scene.background)} background"


def all_descriptions(scene: Scene) -> frozenset[str]:
    """All captions with articles that are true and complete: sizes and backgrounds are named if not the usual ones."""
    things = scene.things
    fits = [fitting().get(thing.index, ()) for thing in things]
    if len(things) == 1:
        sizes = SIZE_WORDS.get(things[0].size, ("",))
        phrases = [name.phrase(size) for name in fits[0] for size in sizes]
        texts = [phrase + tone_ending(things[0].index, phrase) for phrase in phrases]
    elif len({thing.index for thing in things}) == 1:
        numbers = (NUMBERS[len(things) - 1], DIGITS[len(things) - 1])
        texts = [f"{number} {name.plural}" for name in fits[0] if name.plural for number in numbers]
    elif len(things) == 2:
        texts = []
        for (first, its_names), (second, other_names) in permutations(zip(things, fits, strict=True)):
            words = RELATION_WORDS[relation_of(first.x - second.x, first.y - second.y)]
            joints = (*words, *JOINTS) if first.y == second.y else words
            texts += [
                f"{one.phrase()} {joint} {other.phrase()}"
                for one in its_names
                for joint in joints
                for other in other_names
            ]
    else:
        return frozenset()
    colours = COLOUR_WORDS.get(scene.background, (scene.background,))
    ended = {text + ending for text in texts for colour in colours for ending in _endings(colour)}
    return frozenset(ended.union(texts) if scene.background == "white" else ended)


def _endings(colour: str) -> tuple[str, ...]:
    """What names a background at the end of a caption, in several words; the first is the usual one."""
    return f" on {a(colour)} background", f" with {a(colour)} background", f" on {colour}"


@cache
def alone(held_out: bool | None = False) -> tuple[int, ...]:
    """The emoji that are shown alone, in the usual skin tone."""
    everything = emoji(toned=True)
    usual = [index for index in names() if everything[index].tone is None]
    return tuple(index for index in usual if not held_out or index in held_out_indices())


@cache
def sizable(held_out: bool | None = False) -> tuple[int, ...]:
    """Those that are said to be small or large: not the only one of its kind."""
    return tuple(i for i in alone(held_out) if names()[i][0].determiner != "the")


@cache
def composable(held_out: bool | None = False) -> tuple[int, ...]:
    """Those that are shown beside others."""
    return tuple(i for i in alone(None) if held_out is None or (i in held_out_indices()) == held_out)


@cache
def counted(held_out: bool | None = False) -> tuple[int, ...]:
    """Those that are shown several times."""
    return tuple(i for i in composable(held_out) if any(name.plural for name in names()[i]))


@cache
def toned() -> tuple[int, ...]:
    """Hands in other skin tones than the usual one."""
    everything = emoji(toned=True)
    return tuple(index for index in names() if everything[index].tone is not None)
