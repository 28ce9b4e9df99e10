"""The questions of a sample: those of its sources, those that a model was asked, and those that a caption answers."""

from __future__ import annotations

from ..best_of.checks import change_checks, prompt_checks
from ..best_of.phrases import read_instruction
from ..errors import OptionError
from ..training.quadruplets import QA
from .drafts import Draft

DESCRIBE = "Describe the image."
HOW = {
    "describe": "for a description, where a picture has none of its own",
    "checks": "also what the caption says of things, colours and numbers",
    "none": "no questions, for the stages that train on captions alone",
}

_KINDS = ("colour", "count", "position", "background")  # of checks


def check_how(how: str) -> None:
    """Checks the option.

    Raises:
        OptionError: there is no such way.
    """
    if how not in HOW:
        raise OptionError(f"--questions {how}: choose one of {', '.join(HOW)}.")


def questions_of(draft: Draft, answered: tuple[QA, ...], how: str, describe: str = DESCRIBE) -> tuple[QA, ...]:
    """The questions of a sample and their answers; each question comes once.

    Args:
        draft: with its final texts.
        answered: what a model was asked about its picture, with its answers.
        how: of `HOW`.
        describe: the question that a caption answers.
    """
    if how == "none":
        return ()
    own = (*draft.qa, *answered)
    made = _checks(draft) if how == "checks" else ()
    if draft.caption and not draft.qa:
        made = (QA(describe, draft.caption), *made)
    return tuple({pair.question.casefold(): pair for pair in reversed((*own, *made))}.values())[::-1]


def _checks(draft: Draft) -> tuple[QA, ...]:
    """What follows from the words of a caption, or of an instruction.

    Neither whether a thing is there nor how many there are altogether: the answer would always be yes, and a caption
    does not say everything.
    """
    change = read_instruction(draft.instruction) if draft.source else None
    checks = [*(change_checks(change) if change else ()), *(prompt_checks(draft.caption) if draft.caption else ())]
    found = []
    for check in checks:
        if check.kind in _KINDS:
            found.append(QA(check.question, check.expected))
            if check.mirror:
                found.append(QA(check.mirror, "no" if check.expected == "yes" else "yes"))
    return tuple(found)
