"""What each emoji is called, in the singular and the plural, and which emoji a name fits.

Indices are those of `sprites.emoji(toned=True)`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from . import words
from .sprites import emoji

# Seen alone only, never beside other things nor several times: whether the model composes what it never saw composed.
# Drawn by chance among animals, food, vehicles and objects whose name is one common word.
HELD_OUT = (
    "monkey", "ewe", "camel", "mammoth", "mouse", "badger", "dodo", "flamingo", "dolphin", "crab", "spider", "tulip",
    "cactus", "mushroom", "tangerine", "pretzel", "custard", "cocktail glass", "amphora", "brick", "church",
    "synagogue", "sport utility vehicle", "police car light", "parachute", "seat", "snowflake", "sparkler", "ticket",
    "sled", "necktie", "dress", "bikini", "woman's clothes", "purse", "gem stone", "megaphone", "drum", "flute",
    "battery", "television", "camera", "receipt", "postbox", "hammer", "pill", "adhesive bandage", "toilet", "plunger",
    "sponge",
)  # fmt: skip

_VOWEL = re.compile(r"[aeio]|u(?!nicorn|krain|s )|herb|hour|x-ray|suv")
_CONSONANT = re.compile(r"one-|eu|ewe|ufo|uni")
# The head of a name ends here: the plural of "cup of coffee" is "cups of coffee".
_AFTER_HEAD = re.compile(r" (?=of )")
_NO_PLURAL = re.compile(
    r" (with|without|in|on|at|behind|showing|pointing|pushing|holding|licking|blowing|tilted|over) "
)
_PLURALS = {
    "child": "children", "deer": "deer", "bison": "bison", "die": "dice", "elf": "elves", "ewe": "ewes",
    "fish": "fish", "foot": "feet", "goose": "geese", "half": "halves", "knife": "knives", "leaf": "leaves",
    "loaf": "loaves", "man": "men", "moose": "moose", "mouse": "mice", "ox": "oxen", "person": "people",
    "scarf": "scarves", "sheaf": "sheaves", "sheep": "sheep", "shrimp": "shrimp", "squid": "squid", "tooth": "teeth",
    "wolf": "wolves", "woman": "women", "blowfish": "blowfish", "jellyfish": "jellyfish", "merman": "mermen",
    "snowman": "snowmen", "potato": "potatoes", "tomato": "tomatoes", "mosquito": "mosquitoes", "volcano": "volcanoes",
    "tornado": "tornadoes", "superhero": "superheroes", "mango": "mangoes", "cactus": "cacti", "buffalo": "buffalo",
    "bacterium": "bacteria", "merperson": "merpeople", "pufferfish": "pufferfish",
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """What some emoji are called.

    Attributes:
        noun: in lower case, without an article.
        determiner: "a", also where "an" is said; "the"; or none, of several things and of masses.
        plural: None where nobody counts them.
        index: of the emoji that is drawn, in the usual skin tone.
        indices: of all that the name fits, in any skin tone; `index` is one of them.
    """

    noun: str
    determiner: str
    plural: str | None
    index: int
    indices: frozenset[int]

    def phrase(self, adjective: str = "") -> str:
        """With its article, and an adjective before the noun."""
        noun = f"{adjective} {self.noun}".strip()
        return a(noun) if self.determiner == "a" else f"{self.determiner} {noun}".strip()

    @property
    def is_several(self) -> bool:
        """Whether "are" is said of it."""
        head = re.split(r" (?:with|of|in|on|holding|hugging) ", self.noun)[0]
        several = head.endswith("s") or head.startswith("people") or head == "dice"
        return self.determiner == "" and several and self.noun not in words.PROPER

    @property
    def definite(self) -> str:
        """As something that is there: "the red apple"."""
        return self.noun if self.noun in words.PROPER else f"the {self.noun}"


def a(noun: str) -> str:
    """With "a" or "an", as it is spoken."""
    return f"{'an' if _VOWEL.match(noun) and not _CONSONANT.match(noun) else 'a'} {noun}"


@cache
def names() -> dict[int, tuple[Name, ...]]:
    """The names of all emoji that have one, by index; the emoji's own name is the first."""
    indices: defaultdict[str, list[int]] = defaultdict(list)  # in all skin tones, by Unicode's name
    for index, each in enumerate(emoji(toned=True)):
        indices[each.name].append(index)
    own = _entries(words.PHRASES)
    phrases = [(own.get(each, f"a {each.lower()}"), [each]) for each in indices if each not in words.UNNAMED]
    for phrase, patterns in _entries(words.SHORT).items():
        listed = patterns.split(", ")
        if listed[0] in indices:
            phrases.append((phrase, [each for pattern in listed for each in indices if fnmatchcase(each, pattern)]))
    found: dict[tuple[str, str], list[str]] = {}  # what a determiner and a noun fit
    for phrase, fitting in phrases:
        found.setdefault(_parts(phrase), []).extend(fitting)
    result: defaultdict[int, list[Name]] = defaultdict(list)
    for (determiner, noun), fitting in found.items():
        first = fitting[0]
        plural = plural_of(noun) if determiner == "a" and first not in words.UNCOUNTED else None
        fits = frozenset(index for each in fitting for index in indices[each])
        name = Name(noun, determiner, plural, indices[first][0], fits)
        for index in indices[first]:
            result[index].append(name)
    return {index: tuple(found) for index, found in result.items()}


@cache
def fitting() -> dict[int, tuple[Name, ...]]:
    """All names that fit an emoji, by index, those that draw it first."""
    everything = names()
    result = {index: dict.fromkeys(own) for index, own in everything.items()}
    for index, own in everything.items():
        for name in own:
            if name.index == index:
                for each in name.indices & result.keys():
                    result[each].setdefault(name)
    return {index: tuple(found) for index, found in result.items()}


@cache
def kinds() -> dict[int, tuple[str, ...]]:
    """What kind of thing each emoji is, in plain words, by index: the best answer, then others that are right too."""
    starts, everything = _entries(words.KINDS), emoji()
    result, kind = {}, ""
    for before, each in zip((None, *everything), everything, strict=False):
        if before is None or before.group != each.group:
            kind = "an object"
        kind = starts.get(each.name, kind)
        result[each.name] = tuple(kind.split(", "))
    return {index: result[each.name] for index, each in enumerate(emoji(toned=True))}


@cache
def held_out() -> frozenset[int]:
    """The indices of `HELD_OUT`."""
    return frozenset(index for index, each in enumerate(emoji(toned=True)) if each.name in HELD_OUT)


def plural_of(noun: str) -> str | None:
    """ "cups of coffee" of "cup of coffee"; None of what nobody would count, such as a face with something."""
    if _NO_PLURAL.search(noun):
        return None
    head, *rest = _AFTER_HEAD.split(noun, maxsplit=1)
    *before, last = head.split(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(s|x|z|ch|sh)$", last) else "s"
    return " ".join([*before, last, *rest])


def _entries(table: str) -> dict[str, str]:
    """What stands before and after the equals sign of each line; lines that go on are indented."""
    return dict(line.split(" = ") for line in table.strip().replace("\n    ", " ").splitlines())


def _parts(phrase: str) -> tuple[str, str]:
    """Determiner and noun."""
    first, _, rest = phrase.partition(" ")
    if first in ("a", "an"):
        return "a", rest
    return ("the", rest) if first == "the" else ("", phrase)
