"""From a prompt, or from an instruction to edit, to questions about the picture, without a model.

The idea is that of TIFA (Hu et al., arXiv 2303.11897), in which a language model writes the questions; here they follow
from the words, so that it is known what each of them is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

from .phrases import COLOURS, NUMBERS, OPPOSITES, Change, Content, Thing, a, plural, read_text

YES_NO = ("yes", "no")
DESCRIBE = "describe the image."


@dataclass(frozen=True)
class Check:
    """A question about a picture.

    Attributes:
        question: in words.
        expected: the answer where the picture is right.
        answers: all answers between which the model decides; `expected` is one of them.
        kind: "presence", "absence", "colour", "count", "total", "position", "background" or "whole".
    """

    question: str
    expected: str
    answers: tuple[str, ...]
    kind: str


def prompt_checks(prompt: str) -> list[Check]:
    """The questions about a picture of a prompt. The last one is about all of it: "does this image show ...?"."""
    content = read_text(prompt)
    found = [] if content is None else content_checks(content)
    return [*found, whole_check(prompt if content is None else content.caption)]


def whole_check(text: str) -> Check:
    """Whether a picture shows what a text says."""
    return Check(f"does this image show {text.strip().rstrip('.')}?", "yes", YES_NO, "whole")


def result_check(instruction: str) -> Check:
    """Whether a picture can be what an instruction asks for that is not understood here."""
    question = f"could this image be the result of this change: {instruction.strip().rstrip('.')}?"
    return Check(question, "yes", YES_NO, "whole")


def content_checks(content: Content) -> list[Check]:
    """One question about each thing that a text says."""
    checks: list[Check] = []
    for thing in dict.fromkeys(content.things):
        checks.append(Check(f"is there {a(thing.words)}?", "yes", YES_NO, "presence"))
    for noun in dict.fromkeys(thing.noun for thing in content.things):
        same = [thing for thing in content.things if thing.noun == noun]
        counts = [thing.count for thing in same]
        total = sum(count for count in counts if count is not None)
        colours = {thing.colour for thing in same}
        colour = same[0].colour
        if len(colours) == 1 and colour is not None:
            subject = f"is the {noun}" if total == 1 else f"are the {plural(noun)}"
            checks.append(Check(f"what color {subject}?", colour, COLOURS, "colour"))
        if None not in counts and 1 <= total <= len(NUMBERS):
            checks.append(Check(f"how many {plural(noun)} are there?", NUMBERS[total - 1], NUMBERS, "count"))
    if len(content.things) == 1 and content.things[0].numbered:
        checks.append(objects_check(content.things[0].count or 1))
    if content.relation is not None and len(content.things) == 2:
        checks += _position_checks(*content.things, content.relation)
    if content.background is not None:
        checks.append(background_check(content.background))
    return checks


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
    asked = [(names, relation, "yes")]
    if relation in OPPOSITES:
        back = names[::-1]
        asked += [(back, relation, "no"), (back, OPPOSITES[relation], "yes"), (names, OPPOSITES[relation], "no")]
    return [Check(f"is the {x} {said} the {y}?", answer, YES_NO, "position") for (x, y), said, answer in asked]


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
