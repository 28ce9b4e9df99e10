"""What a short English text says: things with their number and colour, where they are, and the background.

No model and no grammar: a text is cut at its prepositions, and every piece has to be a noun phrase ("two red stars").
Where one is not, nothing is understood, which is better than asking about something that nobody wanted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "cyan", "beige",
    "gold", "silver",
)  # fmt: skip
_SPELLINGS = {"grey": "gray", "violet": "purple"}
_ARTICLES = ("a", "an", "the", "another")
_SEVERAL = ("some", "several", "many")  # no number that could be counted

# A preposition as it is written, and as it is asked about.
_RELATIONS = {
    "to the left of": "to the left of", "on the left of": "to the left of", "left of": "to the left of",
    "to the right of": "to the right of", "on the right of": "to the right of", "right of": "to the right of",
    "above": "above", "over": "above", "below": "below", "beneath": "below", "underneath": "below", "under": "below",
    "on top of": "on top of", "in front of": "in front of", "next to": "next to", "beside": "next to",
    "behind": "behind", "inside": "inside", "near": "near", "on": "on", "in": "in",
}  # fmt: skip
OPPOSITES = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
_CUT = re.compile(rf"\b({'|'.join(sorted(_RELATIONS, key=len, reverse=True))})\b")
_FRAME = re.compile(
    r"^(?:please )?(?:draw |paint |show |generate |create )?(?:me )?"
    r"(?:(?:a|an|the) (?:\w+ )?(?:photo|photograph|picture|image|drawing|painting|illustration) (?:of|with) )?"
)
_BACKGROUND = re.compile(r",? (?:on|with|against|in front of) (?:a|an|the) (?:plain |solid )?(\w+) background$")

_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "knives": "knife", "wolves": "wolf", "leaves": "leaf", "loaves": "loaf",
    "scarves": "scarf", "shelves": "shelf", "buses": "bus", "dice": "die",
}  # fmt: skip
_PLURALS = {one: several for several, one in _IRREGULAR.items()}
_MANY = re.compile(r"[^suix]s$")  # stars, and neither glass, bus nor iris
_SAME = ("sheep", "fish", "deer", "scissors", "skis", "pants", "jeans", "shorts", "broccoli", "aircraft")
# With one of these a phrase says more than what a thing is called.
_NO_NOUN = re.compile(
    r"\b(with|of|at|by|for|from|to|that|which|who|is|are|wearing|holding|made|having|no|without|not)\b"
)

# What is longer is no short text. Each thing is three questions, and all are padded to the longest and asked at once.
_MOST_CHARACTERS = 500
_MOST_THINGS = 20


@dataclass(frozen=True)
class Thing:
    """What a noun phrase names.

    Attributes:
        noun: in the singular, with all adjectives but the colour.
        colour: one of `COLOURS`, if there is one.
        count: how many; None where that is left open.
        numbered: whether a number was said, and not an article.
    """

    noun: str
    colour: str | None = None
    count: int | None = 1
    numbered: bool = False

    @property
    def words(self) -> str:
        """Colour and noun, in the singular."""
        return self.noun if self.colour is None else f"{self.colour} {self.noun}"

    @property
    def phrase(self) -> str:
        """As it is said in a caption."""
        if self.numbered or self.count != 1:
            number = "some" if self.count is None else NUMBERS[self.count - 1]
            return f"{number} {self.words if self.count == 1 else plural(self.words)}"
        return a(self.words)


@dataclass(frozen=True)
class Content:
    """What a text says.

    Attributes:
        things: in order.
        relation: where the first of two is, seen from the second.
        background: its colour, where it is named.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def caption(self) -> str:
        """It said in the shortest way."""
        phrases = [thing.phrase for thing in self.things]
        text = f" {self.relation} ".join(phrases) if self.relation else ", ".join(phrases[:-1])
        if not self.relation:
            text += (" and " if text else "") + phrases[-1] if phrases else ""
        return text if self.background is None else f"{text} on {a(self.background)} background".strip()


def read_text(text: str) -> Content | None:
    """What a text says, or None where it says more than is understood here."""
    if len(text) > _MOST_CHARACTERS:
        return None
    text = _FRAME.sub("", normal(text))
    background = None
    if (found := _BACKGROUND.search(text)) is not None:
        if (background := colour_of(found[1])) is None:
            return None
        text = text[: found.start()]
    pieces = _CUT.split(text)
    if len(pieces) > 3:
        return None
    relation = _RELATIONS[pieces[1]] if len(pieces) == 3 else None
    sides = [_things(piece) for piece in pieces[::2]]
    if any(side is None or (relation and len(side) != 1) for side in sides):
        return None
    things = tuple(thing for side in sides for thing in side or ())
    if len(things) > _MOST_THINGS:
        return None
    return Content(things, relation, background)


def normal(text: str) -> str:
    """In small letters, with single blanks and without the last full stop."""
    return " ".join(text.lower().split()).rstrip(" .!")


def _things(text: str) -> tuple[Thing, ...] | None:
    pieces = [piece for piece in re.split(r",? and |, ", text.strip()) if piece]
    things = [read_thing(piece) for piece in pieces]
    return None if not things or None in things else tuple(thing for thing in things if thing is not None)


def read_thing(phrase: str) -> Thing | None:
    """A noun phrase with its article or number, or None where it is none."""
    first, *words = phrase.strip().split()
    if first == "the" and len(words) > 1 and (words[0] in NUMBERS or words[0].isdecimal()):
        first, *words = words  # "the two stars"
    count, numbered = 1, False
    if re.fullmatch(r"\d{1,3}", first) and 1 <= int(first) <= len(NUMBERS):  # int() of thousands of digits is an error
        count, numbered = int(first), True
    elif first in NUMBERS:
        count, numbered = NUMBERS.index(first) + 1, True
    elif first in _SEVERAL or (first == "the" and words and _MANY.search(words[-1])):
        return _named(words, count=None, numbered=False)
    elif first not in _ARTICLES:
        return None
    return _named(words, count=count, numbered=numbered)


def _named(words: list[str], *, count: int | None, numbered: bool) -> Thing | None:
    colours = [word for word in words[:-1] if colour_of(word)]
    nouns = [word for word in words[:-1] if not colour_of(word)] + words[-1:]
    named = " ".join(nouns)
    odd = len(nouns) > 3 or _NO_NOUN.search(named) or not re.fullmatch(r"[\w' -]+", named or "?")
    if odd or len(colours) > 1 or (len(nouns) > 1 and nouns[-1].endswith("ing")):
        return None
    if count != 1:
        named = singular(named)
    return Thing(named, colour_of(colours[0]) if colours else None, count, numbered)


def colour_of(word: str) -> str | None:
    """The colour that a word names, as `COLOURS` spells it."""
    word = _SPELLINGS.get(word, word)
    return word if word in COLOURS else None


def a(words: str) -> str:
    """With its article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(words: str) -> str:
    """The plural of a noun, or of the last of several words."""
    *before, noun = words.split(" ")
    if noun in _PLURALS:
        noun = _PLURALS[noun]
    elif noun not in _SAME:
        if re.search(r"(s|x|ch|sh)$", noun):
            noun += "es"
        elif re.search(r"[^aeiou]y$", noun):
            noun = noun[:-1] + "ies"
        else:
            noun += "s"
    return " ".join([*before, noun])


def singular(words: str) -> str:
    """The singular of a noun, or of the last of several words."""
    *before, noun = words.split(" ")
    if noun in _IRREGULAR:
        noun = _IRREGULAR[noun]
    elif noun not in _SAME:
        if re.search(r"(ss|x|ch|sh|[^aeiou]o|to)es$", noun):
            noun = noun[:-2]
        elif noun.endswith("ies") and len(noun) > 4:
            noun = noun[:-3] + "y"
        elif noun.endswith("s") and not noun.endswith("ss") and len(noun) > 1:
            noun = noun[:-1]
    return " ".join([*before, noun])


# Edits


@dataclass(frozen=True)
class Change:
    """What an instruction changes.

    Attributes:
        kind: "recolour", "replace", "remove", "add" or "background".
        old: the noun that it is about; None for the background and for what is added.
        new: what comes; of "recolour" the same noun in its new colour.
        background: the new colour of the background.
    """

    kind: str
    old: Thing | None = None
    new: Thing | None = None
    background: str | None = None


_BACKGROUND_EDIT = re.compile(
    r"(?:change|make|turn|set|paint) (?:the )?background(?: color| colour)? ?(?:to|into)? ?(?:be )?(?:an? )?(\w+)"
    r"|(?:change|make|turn|set) the color of the background to (\w+)"
)
_RECOLOUR = re.compile(
    r"(?:make|paint|color|colour|turn|dye) (the [\w -]+?) (?:in )?(?:to |into )?(\w+)"
    r"|change the colou?r of (the [\w -]+?) to (\w+)|change (the [\w -]+?)(?:'s colou?r)? to (\w+)"
)
_REPLACE = re.compile(
    r"(?:change|turn|transform|convert) (the [\w -]+?) (?:in)?to (an? [\w -]+)"
    r"|(?:replace|swap) (the [\w -]+?) (?:with|by|for) (an? [\w -]+)"
)
_REMOVE = re.compile(r"(?:remove|delete|erase|take away|get rid of) (the [\w -]+)")
_ADD = re.compile(
    r"(?:add|insert|put|place|draw) ((?:an?|one|another) [\w -]+?)"
    r"(?: (?:to|into|in) the (?:image|picture|scene|photo))?"
)


def read_instruction(text: str) -> Change | None:
    """What an instruction changes, or None where it is not understood."""
    if len(text) > _MOST_CHARACTERS:
        return None
    text = normal(text)
    if (found := _BACKGROUND_EDIT.fullmatch(text)) and (colour := colour_of(found[1] or found[2])):
        return Change("background", background=colour)
    if (groups := _match(_RECOLOUR, text)) and (colour := colour_of(groups[1])) and (old := read_thing(groups[0])):
        return Change("recolour", old, replace(old, colour=colour))
    for pattern, kind in ((_REPLACE, "replace"), (_REMOVE, "remove"), (_ADD, "add")):
        if groups := _match(pattern, text):
            things = [read_thing(group) for group in groups]
            if None in things:
                return None
            old, new = (None, things[0]) if kind == "add" else (things[0], things[1] if len(things) > 1 else None)
            return Change(kind, old, new)
    return None


def _match(pattern: re.Pattern[str], text: str) -> list[str]:
    found = pattern.fullmatch(text)
    return [group for group in found.groups() if group] if found else []


def changed(content: Content, change: Change) -> Content | None:
    """What a picture shows after a change; None where what is changed is not there just once."""
    if change.kind == "background":
        return replace(content, background=change.background)
    if change.kind == "add":
        assert change.new is not None
        return replace(content, things=(*content.things, change.new), relation=None)
    assert change.old is not None
    same = [i for i, thing in enumerate(content.things) if thing.noun == change.old.noun and thing.count == 1]
    if len(same) != 1:
        return None
    old, things = content.things[same[0]], list(content.things)
    if change.kind == "remove":
        del things[same[0]]
        return replace(content, things=tuple(things), relation=None)
    assert change.new is not None
    colour = change.new.colour or old.colour
    things[same[0]] = replace(change.new, colour=colour)
    return replace(content, things=tuple(things))
