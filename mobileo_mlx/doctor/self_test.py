"""A short test with the bundled model `tiny`: it draws, answers and edits, and each result is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..pipeline import MobileO
from . import goldens
from .comparison import worst

if TYPE_CHECKING:
    from PIL import Image

_QUESTION = "what color is the star?"
_MARGIN = 80  # of 255, by which a channel exceeds the others in a pixel of its colour
_SMALLEST = 0.02  # of the picture, that an object covers; in the bundled model's world it is some 0.05


@dataclass(frozen=True)
class Check:
    """A result, and what was expected, in words.

    Attributes:
        name: "draw", "ask", "edit" or "goldens".
        seconds: the first of them load the networks, too.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


def self_test() -> Iterator[Check]:
    """Runs the bundled model in the precision that it takes on this device, check by check.

    What stops a check is its result: nothing is raised.
    """
    model: MobileO | None = None

    def loaded() -> MobileO:
        nonlocal model
        model = model or MobileO.load(goldens.MODEL)
        return model

    checks: dict[str, Callable[[MobileO], tuple[bool, str]]] = {
        "draw": _draw,
        "ask": _ask,
        "edit": _edit,
        "goldens": _goldens,
    }
    for name, check in checks.items():
        begin = time.perf_counter()
        try:
            passed, detail = check(loaded())
        except Exception as error:
            # Not narrower: whatever it is that stops a task here, the user is to read and to report.
            passed, detail = False, f"{type(error).__name__}: {error}"
        yield Check(name, passed, detail, time.perf_counter() - begin)


def _draw(model: MobileO) -> tuple[bool, str]:
    prompt = goldens.read()[0].prompt
    result = model.generate(prompt, seed=0)
    finite = bool(mx.isfinite(result.latents).all())
    red, blue = (_pixels(result.images[0], channel) for channel in (0, 2))
    placed = min(len(red), len(blue)) > 0 and bool(red.mean() < blue.mean())
    answer = model.ask(result.images[0], _QUESTION).text
    passed = finite and placed and answer == "red"
    return passed, f"{prompt}: {_seen(red, blue)}; asked for the star's colour it says {answer!r}"


def _ask(model: MobileO) -> tuple[bool, str]:
    from PIL import Image

    given, _ = goldens.read()
    answer = model.ask(Image.fromarray(given.image), given.question).text
    return answer == given.answer, f"{given.question} {answer!r}, expected {given.answer!r}"


def _edit(model: MobileO) -> tuple[bool, str]:
    from PIL import Image

    given, _ = goldens.read()
    instruction = "make the star blue"
    result = model.edit(Image.fromarray(given.image), instruction, seed=0)
    red, blue = (_pixels(result.images[0], channel) for channel in (0, 2))
    answer = model.ask(result.images[0], _QUESTION).text
    passed = len(red) == 0 and len(blue) > 0 and answer == "blue" and bool(mx.isfinite(result.latents).all())
    return passed, f"{instruction}: {_seen(red, blue)}; asked for the star's colour it says {answer!r}"


def _goldens(model: MobileO) -> tuple[bool, str]:
    compared = goldens.compare_bundled()
    failed = [one.stopped_by or f"{one.name} differs by {one.rms:.1e}" for one in compared if not one.passed]
    if failed:
        return False, "; ".join(failed)
    largest = worst(compared)
    known = f"largest relative error {largest.rms:.1e} ({largest.name})" if largest.rms else "all equal"
    return True, f"{len(compared)} known results, {known}"


def _pixels(image: Image.Image, channel: int) -> np.ndarray:
    """The columns of the pixels in which one channel exceeds the others; none where they are too few for an object."""
    levels = np.asarray(image).astype(int)
    others = np.delete(levels, channel, axis=-1).max(axis=-1)
    columns = np.nonzero(levels[..., channel] - others > _MARGIN)[1]
    return columns if columns.size >= _SMALLEST * others.size else columns[:0]


def _seen(red: np.ndarray, blue: np.ndarray) -> str:
    if red.size and blue.size:
        return "red " + ("left of" if red.mean() < blue.mean() else "right of") + " blue"
    return "red alone" if red.size else "blue alone" if blue.size else "neither red nor blue"
