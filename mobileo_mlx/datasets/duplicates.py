"""Pictures that come twice: the same pixels, or nearly the same look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..errors import OptionError
from .drafts import Draft
from .pictures import Picture

Rule = Literal["exact", "near", "keep"]
RULES: dict[str, str] = {
    "exact": "the same pixels are left out",
    "near": "those that look nearly the same, too",
    "keep": "all stay",
}
LARGEST = 16  # of 64 bits; at random half of them differ

_COLOURS = 8  # of 255, the mean difference of the cells' colours up to which two pictures may be the same


def check_rule(rule: str, near: int) -> None:
    """Checks the options.

    Raises:
        OptionError: there is no such rule, or the distance is out of range.
    """
    if rule not in RULES:
        raise OptionError(f"--duplicates {rule}: choose one of {', '.join(RULES)}.")
    if not 0 <= near <= LARGEST:
        raise OptionError(f"--near {near}: choose a number of bits from 0 to {LARGEST}.")


def find_duplicates(
    drafts: Sequence[Draft], pictures: Mapping[str, Picture], near: int | None = None
) -> dict[int, tuple[int, str]]:
    """Which drafts repeat an earlier one.

    Samples of one picture with different captions are none, and neither are edits of it with different instructions.
    Near are two whose difference hashes differ in at most `near` of 64 bits and whose colours in 4 x 4 cells by at most
    8 of 255 on average. The time is quadratic in the number of pictures.

    Args:
        drafts: in order; of two the one without a text of its own is left out, else the later one.
        pictures: all that they name, by path.
        near: the largest number of bits; None where only equal pixels count.

    Returns:
        for the number of each that repeats one the number of that one, and "exact" or "near".
    """
    order = sorted(range(len(drafts)), key=lambda i: not drafts[i].prompt)
    exact: dict[tuple[str, ...], int] = {}
    found: dict[int, tuple[int, str]] = {}
    looks = np.zeros(len(drafts), np.uint64)
    colours = np.zeros((len(drafts), 48), np.int16)
    kept: dict[str, list[int]] = {}  # places in the two arrays, which are those in `order`, by kind of sample
    for place, i in enumerate(order):
        draft = drafts[i]
        picture = pictures[draft.picture]
        source = pictures[draft.source].digest if draft.source else ""
        kind = f"{source} {draft.instruction}" if source else str(draft.number)
        key = (picture.digest, kind)
        if key in exact:
            found[i] = (exact[key], "exact")
            continue
        exact[key] = i
        if near is None:
            continue
        looks[place] = picture.look
        colours[place] = np.frombuffer(bytes.fromhex(picture.colours), np.uint8)
        others = kept.setdefault(kind, [])
        if others:
            like = np.array(others)[_bits(looks[others] ^ looks[place]) <= near]
            like = like[np.abs(colours[like] - colours[place]).mean(axis=1) <= _COLOURS]
            if like.size:
                found[i] = (order[like[0]], "near")
                continue
        others.append(place)
    return found


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each are set."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
