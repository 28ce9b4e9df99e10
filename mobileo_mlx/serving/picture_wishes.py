"""Whether a message asks for a picture: a rule on its first words, as the model itself can't say.

A picture is asked for by

- to draw, paint, sketch, illustrate something: "please draw me a cat";
- to generate, create, make, show (or to want, to need) an image, a picture, a photo, a painting *of* something.

Where there is a picture already, it is to be edited by

- to edit, change, replace, recolor, transform something; to remove *the* ..., to add *a* ...;
- to make, turn, paint *it* or *the* ...: "make the star blue"; to draw something *on it*.

Words of politeness may come before and after. Everything else is a question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..generation_options import Task

_LONGEST = 4000  # characters of a message that may ask for a picture

_POLITE = (
    r"(?:(?:please|hey|hi|hello|ok|okay|now|so|then|and|also|thanks|great|nice|(?:can|could|would|will) you|"
    r"i(?:'d| would) like you to|i want you to|let's)\b[ ,.!]*)*"
)
_THANKS = (" please", ",please", " for me", " for us", " thanks", ",thanks", " thank you")

_NO_DRAWING = r"(?!(?:an? |the |some |any )?(?:conclusion|comparison|distinction|parallel|inference|lesson|attention))"
_DRAW = rf"(?:draw|paint|sketch|illustrate|doodle)(?: (?:me|us)\b)?:? (?P<drawn>{_NO_DRAWING}\S.*)"
_NOUN = r"(?:image|picture|pic|photo|photograph|drawing|painting|illustration|sketch|portrait)s?"
_MAKE = (
    r"(?:generate|create|make|produce|render|design|show|give|send|i want|i need|i'd like)(?: (?:me|us)\b)? "
    rf"(?P<made>(?:(?:an?|one|one more|another|some|\d+) )?(?P<kind>(?:[\w-]+ ){{0,3}}?){_NOUN} ?"
    r"(?:of|with|showing|depicting|where|in which|that shows|:) ?(?P<shown>\S.*))"
)
_GENERATE = re.compile(rf"{_POLITE}(?:{_DRAW}|{_MAKE})", re.IGNORECASE)

_THING = r"(?:it|this|that|him|her|them|the|everything|all|his|its|their)\b"
_EDIT = re.compile(
    rf"{_POLITE}(?P<edit>(?:"
    r"(?:edit|change|replace|recolou?r|restyle|transform|convert|modify) \S"
    rf"|(?:remove|erase|delete|make|turn|colou?r|paint|repaint|redraw) {_THING}"
    r"|add (?:an?|some|more|the|another|two|three) \S"
    r"|(?:draw|give|put) (?:it|this|that|him|her|them)\b"
    r"|(?:draw|paint|put) [^.!?]*\b(?:on|onto|over|behind|under|in|around|beside) (?:it|this|that|him|her|them)\b"
    r").*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wish:
    """A picture that is asked for.

    Attributes:
        task: "generate" or "edit".
        prompt: what to draw, or the instruction.
    """

    task: Task
    prompt: str


def read_wish(text: str, *, has_picture: bool) -> Wish | None:
    """The picture that a message asks for, or None.

    Args:
        text: what the user says.
        has_picture: whether there is one that could be edited.
    """
    if len(text) > _LONGEST:
        return None
    text = " ".join(text.split())
    if has_picture and (found := _EDIT.match(text)):
        return Wish("edit", _without_thanks(found["edit"]))
    if not (found := _GENERATE.match(text)):
        return None
    if found["drawn"]:
        prompt = found["drawn"]
    else:  # "a watercolor painting of a fox" says more than "a fox", "an image of a fox" does not
        plain = not found["kind"] and re.search(r"(?:image|picture|pic)s? ?(?:of|showing|:)", found["made"][:30], re.I)
        prompt = found["shown"] if plain else found["made"]
    prompt = _without_thanks(prompt)
    return Wish("generate", prompt) if re.search(r"\w", prompt) and not _is_pronoun(prompt) else None


def _without_thanks(text: str) -> str:
    """Without politeness at its end."""
    while True:
        text = text.strip(" .!?,")
        thanks = next((words for words in _THANKS if text.lower().endswith(words)), "")
        if not thanks:
            return text
        text = text[: -len(thanks)]


def _is_pronoun(text: str) -> bool:
    return text.lower() in ("it", "this", "that", "one", "something", "him", "her", "them")
