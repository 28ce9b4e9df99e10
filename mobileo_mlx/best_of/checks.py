"""From a prompt, or from an instruction to edit, to questions about the picture, without a model.

The idea is that of TIFA (Hu et al., arXiv 2303.11897), in which a language model writes the questions; here they follow
from the words, so that it is known what each of them is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .phrases import COLOURS, NUMBERS, OPPOSITES, Change, Content, Thing, a, plural, read_text

YES_NO = ("yes", "no")
DESCRIBE = "describe the image."
ARTICLE = "a"  # with which the description of a single thing begins


@dataclass(frozen=True)
class Check:
    """A question about a picture.

    Attributes:
        question: in words.
        expected: the answer where the picture is right.
        answers: all answers between which the model decides; `expected` is one of them.
        kind: "presence", "absence", "colour", "count", "total", "described", "position", "background", "kept" or
            "whole".
        mirror: a question whose answer is the opposite one wherever the model can answer it.
    """

    question: str
    expected: str
    answers: tuple[str, ...]
    kind: str
    mirror: str = ""


def prompt_checks(prompt: str) -> list[Check]:
    """The questions about a picture of a prompt.

    Where it is not understood, there is one, about all of it: "does this image show ...?". It is of no use beside the
    others, which are easier: docs/best-of.md has the figures.
    """
    content = read_text(prompt)
    return [whole_check(prompt)] if content is None else content_checks(content)


def whole_check(text: str) -> Check:
    """Whether a picture shows what a text says."""
    return Check(f"does this image show {text.strip().rstrip('.')}?", "yes", YES_NO, "whole")


def result_check(instruction: str) -> Check:
    """Whether a picture can be what an instruction asks for that is not understood here."""
    question = f"could this image be the result of this change: {instruction.strip().rstrip('.')}?"
    return Check(question, "yes", YES_NO, "whole")


def content_checks(content: Content) -> list[Check]:
    """One question or several about each thing that a text says."""
    checks = [Check(f"is there {a(one.words)}?", "yes", YES_NO, "presence") for one in dict.fromkeys(content.things)]
    for noun in dict.fromkeys(thing.noun for thing in content.things):
        checks += _noun_checks([thing for thing in content.things if thing.noun == noun])
    if len(content.things) == 1:
        checks += _only_thing_checks(content.things[0])
    if content.relation is not None and len(content.things) == 2:
        checks += _position_checks(*content.things, content.relation)
    if content.background is not None:
        checks.append(background_check(content.background))
    return checks


def _noun_checks(same: Sequence[Thing]) -> list[Check]:
    """Colour and number of what has one name."""
    checks, noun = [], same[0].noun
    counts, colours = [thing.count for thing in same], {thing.colour for thing in same}
    total = sum(count for count in counts if count is not None)
    if len(colours) == 1 and (colour := same[0].colour) is not None:
        subject = f"is the {noun}" if total == 1 else f"are the {plural(noun)}"
        checks.append(Check(f"what color {subject}?", colour, COLOURS, "colour"))
    if None not in counts and 1 <= total <= len(NUMBERS):
        checks.append(Check(f"how many {plural(noun)} are there?", NUMBERS[total - 1], NUMBERS, "count"))
    return checks


def _only_thing_checks(thing: Thing) -> list[Check]:
    """Number of all that is there: asked for, and as a description begins."""
    if thing.count is None:
        return []
    first = ARTICLE if thing.count == 1 else NUMBERS[thing.count - 1]
    described = Check(DESCRIBE, first, (ARTICLE, *NUMBERS[1:]), "described")
    return [described, objects_check(thing.count)] if thing.numbered else [described]


def objects_check(count: int) -> Check:
    """How many things there are altogether."""
    return Check("how many objects are there?", NUMBERS[count - 1], NUMBERS, "total")


def background_check(colour: str) -> Check:
    """The colour of the background."""
    return Check("what color is the background?", colour, COLOURS, "background")


def _position_checks(first: Thing, second: Thing, relation: str) -> list[Check]:
    names = (first.noun, second.noun)
    if first.noun == second.noun:
        names = (first.words, second.words)
        if first.words == second.words:
            return []
    back = names[::-1]
    asked = [(names, relation, back)]
    if relation in OPPOSITES:
        asked.append((back, OPPOSITES[relation], names))

    def question(order: tuple[str, ...], said: str) -> str:
        return f"is the {order[0]} {said} the {order[1]}?"

    return [
        Check(question(order, said), "yes", YES_NO, "position", question(other, said) if said in OPPOSITES else "")
        for order, said, other in asked
    ]


def change_checks(change: Change) -> list[Check]:
    """The questions that an instruction answers by itself, whatever else the picture shows."""
    checks = []
    if change.background is not None:
        checks.append(background_check(change.background))
    if change.new is not None:
        checks.append(Check(f"is there {a(change.new.words)}?", "yes", YES_NO, "presence"))
        if change.new.colour is not None:
            checks.append(Check(f"what color is the {change.new.noun}?", change.new.colour, COLOURS, "colour"))
    if change.old is not None and (change.new is None or change.new.noun != change.old.noun):
        checks.append(Check(f"is there {a(change.old.words)}?", "no", YES_NO, "absence"))
    return checks
