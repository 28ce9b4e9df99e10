"""`mobileo-mlx dataset`: training data from pictures."""

from __future__ import annotations

from collections.abc import Callable

from mobileo_mlx.errors import OptionError

NAME = "dataset"
HELP = "Make training data of pictures, and check it."


def build() -> None:
    """Make training data of a folder of pictures."""
    raise OptionError("this is not written yet.")


def check() -> None:
    """Check training data as finetune does."""
    raise OptionError("this is not written yet.")


COMMANDS: dict[str, Callable[..., None]] = {"build": build, "check": check}
