"""`mobileo-mlx eval geneval` and `geneval-score`."""

from __future__ import annotations

from mobileo_mlx.errors import OptionError


def geneval() -> None:
    """Draw the prompts of GenEval."""
    raise OptionError("this is not written yet.")


def score() -> None:
    """Score a folder of GenEval."""
    raise OptionError("this is not written yet.")
