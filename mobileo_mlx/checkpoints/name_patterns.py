"""Regular expressions on the names of layers, as adapters' configurations hold them, without Python's `re`.

An expression of a foreign file can keep `re` busy for years: it tries one way after the other. Here a set of positions
in the name, the bits of one integer, goes through the expression from left to right, so that each part of it costs a
few operations whatever it matches. What such sets can't do, or adapters don't need, is refused: lookaround, references
and repeated groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

MAX_LENGTH = 4000  # characters of an expression; the longest in use, which name the parts of several models, have 1000
_MAX_REPEATS = 64  # of {m,n}
_MAX_DEPTH = 20  # of groups

# From positions where a match of a part may start to those where it may end.
_Part = Callable[["_Name", int], int]


class PatternError(ValueError):
    """An expression that is not understood; the message goes on after the expression."""


class Pattern:
    """One expression, to be matched with many names.

    Args:
        text: in the syntax of Python's `re`: characters, `.`, sets, `\\d`, `\\w`, `\\s`, `\\b`, `^`, `$`, alternatives,
            groups, and repetitions of single characters.

    Raises:
        PatternError: it is too long, not an expression, or has something else.
    """

    def __init__(self, text: str):
        if len(text) > MAX_LENGTH:
            raise PatternError(f"has {len(text):,} characters, and {MAX_LENGTH:,} are the limit")
        self.text = text
        self._match = _Parser(text).whole()
        self._plain = _plain_parts(text)

    def matches(self, name: str) -> bool:
        """Whether it matches the whole name."""
        read = _read(name)
        return bool(self._match(read, 1) & read.end)

    def matches_end(self, name: str) -> bool:
        """Whether it matches the whole name, or what stands behind one of its dots."""
        if self._plain is not None:
            begin = len(name) - len(self.text)
            starts = begin == 0 or (begin > 0 and name[begin - 1] == ".")
            return starts and all(name.startswith(part, begin + offset) for offset, part in self._plain)
        read = _read(name)
        return bool(self._match(read, read.starts) & read.end)

    def matches_parts(self, name: str) -> bool:
        """Whether it matches what stands between two dots, or the beginning or the end of the name."""
        read = _read(name)
        return bool(self._match(read, read.starts) & (read.dots | read.end))

    def number_behind(self, name: str) -> int | None:
        """The first whole number between dots right behind a match that starts as that of `matches_parts`."""
        read = _read(name)
        ends = self._match(read, read.starts) & read.dots
        while ends:
            lowest = (ends & -ends).bit_length() - 1
            number, dot, _ = name[lowest + 1 :].partition(".")
            if dot and number.isdecimal():
                return int(number[:9])
            ends &= ends - 1
        return None


class _Name:
    """A name as sets of positions: bit i stands for the place in front of character i."""

    def __init__(self, text: str):
        self.text = text
        self.end = 1 << len(text)
        self._where: dict[_Set, int] = {}
        self.dots = self.where(_Set("."))
        self.starts = 1 | self.dots << 1

    def where(self, characters: _Set) -> int:
        """Where characters of a set stand."""
        if (found := self._where.get(characters)) is None:
            found = sum(1 << i for i, character in enumerate(self.text) if character in characters)
            self._where[characters] = found
        return found

    @functools.cached_property
    def word_ends(self) -> int:
        """Where a word begins or ends."""
        word = self.where(_WORD)
        return (word ^ word << 1) & (self.end << 1) - 1


class _Set:
    """Characters, or all but them."""

    def __init__(self, *members: str | Callable[[str], bool], negated: bool = False):
        self._characters = frozenset(member for member in members if isinstance(member, str))
        self._tests = tuple(member for member in members if not isinstance(member, str))
        self._negated = negated
        self._key = (self._characters, self._tests, negated)
        self._hash = hash(self._key)

    def __contains__(self, character: str) -> bool:
        inside = character in self._characters or any(test(character) for test in self._tests)
        return inside != self._negated

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Set) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_ANY = _Set("\n", negated=True)
_WORD = _Set(_is_word)
_CLASSES: dict[str, Callable[[str], bool]] = {"d": str.isdecimal, "w": _is_word, "s": str.isspace}
_CLASSES |= {
    "D": lambda character: not character.isdecimal(),
    "W": lambda character: not _is_word(character),
    "S": lambda character: not character.isspace(),
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@functools.lru_cache(maxsize=4)  # many expressions are asked about one name
def _read(name: str) -> _Name:
    return _Name(name)


def _plain_parts(text: str) -> list[tuple[int, str]] | None:
    """What stands between the dots of a name that is used as an expression, with its place; None of any other one.

    Some adapters name each of several hundred layers, and comparing parts is ten times faster.
    """
    if not all(character.isalnum() or character in "._-" for character in text):
        return None
    parts = text.split(".")
    offsets = [sum(map(len, parts[:number])) + number for number in range(len(parts))]
    return list(zip(offsets, parts, strict=True))


class _Parser:
    def __init__(self, text: str):
        self._text, self._at, self._depth = text, 0, 0

    def whole(self) -> _Part:
        part = self._alternatives()
        if self._at < len(self._text):
            raise self._error("a ) without its (")
        return part

    def _next(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _accept(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _error(self, what: str) -> PatternError:
        return PatternError(f"has {what} at character {self._at + 1}, which is not understood here")

    def _alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._accept("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _either(parts)

    def _sequence(self) -> _Part:
        parts = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else _one_after_the_other(parts)

    def _repeated(self) -> _Part:
        begin = self._at
        atom = self._atom()
        least, most = self._repetition()
        if (least, most) == (1, 1):
            return _one(atom) if isinstance(atom, _Set) else atom
        if isinstance(atom, _Set):
            return _several(atom, least, most)
        if (least, most) == (0, 1) and self._text[begin] == "(":
            return _either([atom, lambda name, starts: starts])
        raise self._error("a repeated group")

    def _repetition(self) -> tuple[int, int | None]:
        least: int = 1
        most: int | None = 1
        if self._next() in ("*", "+", "?") and self._next():
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self._next()]
            self._at += 1
        elif self._next() == "{":
            inside, closed, _ = self._text[self._at + 1 :].partition("}")
            low, comma, high = inside.partition(",")
            if not closed or not all(number.isdecimal() or (comma and not number) for number in (low, high or low)):
                raise self._error("a { that is no number of repetitions")
            least, most = int(low[:9] or 0), (int(high[:9]) if high else None) if comma else int(low[:9])
            if max(least, most or 0) > _MAX_REPEATS or (most is not None and most < least):
                raise self._error("this number of repetitions")
            self._at += len(inside) + 2
        else:
            return least, most
        self._accept("?")  # as few as possible: it makes no difference to whether the whole matches
        if self._next() in ("*", "+", "?", "{") and self._next():
            raise self._error("a repetition of a repetition")
        return least, most

    def _atom(self) -> _Part | _Set:
        character = self._next()
        if character in "*+?{":
            raise self._error("nothing to repeat")
        if character == "[":
            return self._set()
        self._at += 1
        if character == "(":
            return self._group()
        if character == "\\":
            return self._escape()
        if character == ".":
            return _ANY
        if character == "^":
            return lambda name, starts: starts & 1
        if character == "$":
            return lambda name, starts: starts & name.end
        return _Set(character)

    def _group(self) -> _Part:
        if not self._accept("?:") and self._next() == "?":
            raise self._error(f"({self._text[self._at : self._at + 2]}")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error("so many groups inside of each other")
        part = self._alternatives()
        if not self._accept(")"):
            raise self._error("a missing )")
        self._depth -= 1
        return part

    def _escape(self) -> _Part | _Set:
        character = self._next()
        self._at += 1
        if character in _CLASSES:
            return _Set(_CLASSES[character])
        if character == "b":
            return lambda name, starts: starts & name.word_ends
        return _Set(self._escaped(character))

    def _escaped(self, character: str) -> str:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character.isalnum() or not character:
            raise self._error(f"\\{character}")
        return character

    def _set(self) -> _Set:
        self._at += 1
        negated, members = self._accept("^"), list[str | Callable[[str], bool]]()
        while not self._accept("]") or not members:  # a ] that comes first is a member
            member = self._member() if members or self._text[self._at - 1] != "]" else "]"
            if isinstance(member, str) and self._next() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._member()
                if not isinstance(last, str) or not 0 <= ord(last) - ord(member) < 256:
                    raise self._error("a range of characters")
                members += map(chr, range(ord(member), ord(last) + 1))
            else:
                members.append(member)
        return _Set(*members, negated=negated)

    def _member(self) -> str | Callable[[str], bool]:
        character = self._next()
        self._at += 1
        if not character:
            raise self._error("a missing ]")
        if character != "\\":
            return character
        character = self._next()
        self._at += 1
        return _CLASSES[character] if character in _CLASSES else self._escaped(character)


def _one(characters: _Set) -> _Part:
    return lambda name, starts: (starts & name.where(characters)) << 1


def _several(characters: _Set, least: int, most: int | None) -> _Part:
    def match(name: _Name, starts: int) -> int:
        where = name.where(characters)
        for _ in range(least):
            starts = (starts & where) << 1
        if most is None:
            # Every start runs on to the end of its run of such characters: adding carries it there (G. Myers, 1999).
            return ((starts & where) + where ^ where) & (name.end << 1) - 1 | starts if starts else 0
        for _ in range(most - least):
            starts |= (starts & where) << 1
        return starts

    return match


def _either(parts: list[_Part]) -> _Part:
    def match(name: _Name, starts: int) -> int:
        ends = 0
        for part in parts:
            ends |= part(name, starts)
        return ends

    return match


def _one_after_the_other(parts: list[_Part]) -> _Part:
    def match(name: _Name, starts: int) -> int:
        for part in parts:
            if not starts:
                break
            starts = part(name, starts)
        return starts

    return match
