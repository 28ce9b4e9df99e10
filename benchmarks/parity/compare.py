"""Numbers against numbers: tolerances, verdicts, and what is known about large ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["pass", "fail", "not exercised", "inputs"]
Measure = Literal["relative", "absolute", "exact", "levels"]

RATIO_LIMIT = 20.0
FEW_UNITS = 16  # half units in the last place of the largest value: what a handful of float32 operations may lose
FEW_VALUES = 16  # the largest rounding error of so few is no measure of what is usual
EQUAL_LEVELS = 0.999  # share of an 8-bit image's values that have to be equal; the others are one level off


@dataclass(frozen=True)
class Tolerance:
    """How far a tensor may be off.

    relative: max |a - b| / max |reference|. absolute: max |a - b|. exact: equal. levels: of an 8-bit image.
    """

    measure: Measure
    limit: float = 0.0

    def __str__(self) -> str:
        if self.measure == "exact":
            return "exact"
        if self.measure == "levels":
            return f"{self.limit:.0f} level"
        return f"{self.limit:.1e}".replace(".0e", "e") + (" abs" if self.measure == "absolute" else "")


EXACT = Tolerance("exact")

# Those that the makers of the reference suggest for float32. One is tighter: 1e-6 in place of the connector's
# LayerNorm epsilon of 1e-5 changes its output by less than 1e-4, the suggestion.
_TOLERANCES: dict[str, float] = {
    "vision": 1e-4,
    "llm": 1e-4,
    "mcp": 1e-5,
    "vae": 1e-4,
    "dit": 5e-4,
    "schedulers": 1e-5,
    "lora": 1e-4,
}
_PIPELINE = {"generate", "edit"}


def tolerance(component: str, name: str, dtype: str) -> Tolerance:
    """The tolerance of a tensor of a component.

    Raises:
        KeyError: none is known for it.
    """
    if component in _PIPELINE:
        if name == "image_u8":
            return Tolerance("levels", 1)
        if name == "image":
            return Tolerance("absolute", 2e-3)
        return Tolerance("relative", 2e-3 if name == "model_outputs" else 1e-3)
    if not dtype.startswith("float") or component == "preprocess" or (component, name) == ("schedulers", "timesteps"):
        return EXACT
    return Tolerance("relative", _TOLERANCES[component])


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        tensor: its name in the index.
        max_abs: the largest difference; None where there are no numbers to subtract.
        relative: max_abs / max |reference|; of an 8-bit image the share of values that differ.
        ratio: max_abs / the original's own difference between float32 and float64; None where that is unknown.
        note: why it failed, or what is known about its ratio.
    """

    component: str
    case: str
    tensor: str
    verdict: Verdict
    tolerance: Tolerance | None = None
    max_abs: float | None = None
    relative: float | None = None
    ratio: float | None = None
    note: str = ""

    @property
    def severity(self) -> float:
        """The error as a multiple of its tolerance, to find the worst of several."""
        if self.verdict == "fail":
            return math.inf
        if self.tolerance is None or not self.tolerance.limit:
            return 0.0
        if self.tolerance.measure == "levels":
            return (self.relative or 0.0) / (1 - EQUAL_LEVELS)
        error = self.relative if self.tolerance.measure == "relative" else self.max_abs
        return (error or 0.0) / self.tolerance.limit

    @property
    def large_ratio(self) -> bool:
        return self.ratio is not None and self.ratio > RATIO_LIMIT


def compare(
    component: str,
    case: str,
    name: str,
    ours: np.ndarray,
    reference: np.ndarray,
    allowed: Tolerance,
    rounding: float | None = None,
    keep: np.ndarray | None = None,
) -> Check:
    """Compares a tensor with the original's.

    Args:
        rounding: the largest difference between the original's float32 and float64 values.
        keep: bool, broadcast against the tensors' leading axes: where the values have a meaning.
    """
    if ours.shape != reference.shape:
        note = f"has the shape {ours.shape} instead of {reference.shape}"
        return Check(component, case, name, "fail", allowed, note=note)
    if keep is not None:
        ours, reference = ours[keep], reference[keep]
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    difference = np.abs(a - b)
    # NaN compares as neither larger nor smaller, so it would pass where it is not made infinite.
    max_abs = float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0))
    scale = float(np.abs(b).max(initial=0.0))
    relative = max_abs / scale if scale > 0 else max_abs
    if allowed.measure == "levels":
        relative = float((difference != 0).mean())
        passed = max_abs <= allowed.limit and relative <= 1 - EQUAL_LEVELS
    elif allowed.measure == "relative":
        passed = relative <= allowed.limit
    else:
        passed = max_abs <= allowed.limit
    ratio = None
    if rounding is not None:
        ratio = max_abs / rounding if rounding > 0 else (0.0 if max_abs == 0 else math.inf)
    note = ""
    if not passed and allowed.measure == "levels":
        note = f"{relative:.2%} of the values differ, by up to {max_abs:.0f} levels"
    elif not passed:
        note = f"the error is {relative if allowed.measure == 'relative' else max_abs:.1e}, and {allowed} is allowed"
    elif ratio is not None and ratio > RATIO_LIMIT:
        note = _explanation(relative, b.size)
        if not note:
            passed, note = False, f"the ratio {ratio:.1f} is not explained: look for a cause"
    return Check(component, case, name, "pass" if passed else "fail", allowed, max_abs, relative, ratio, note)


def equal(component: str, case: str, name: str, ours: Any, reference: Any) -> Check:
    """Compares what is no tensor: a string, a list of ids, a hash."""
    if ours == reference:
        return Check(component, case, name, "pass", EXACT)
    note = f"is {_short(ours)} instead of {_short(reference)}"
    return Check(component, case, name, "fail", EXACT, note=note)


def unexercised(component: str, case: str, name: str, note: str = "") -> Check:
    return Check(component, case, name, "not exercised", note=note)


def _explanation(relative: float, size: int) -> str:
    """Why the original's rounding is so much smaller than our error, where that is harmless; "" where it is not."""
    units = relative / 2**-24
    if units <= FEW_UNITS:
        return f"the original happens to round well: ours is {units:.0f} half units in the last place of the maximum"
    if size < FEW_VALUES:
        return f"the rounding of {size} value{'s' * (size > 1)} is a matter of luck, and says little"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
