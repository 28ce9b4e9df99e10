"""`mobileo-mlx export`: a model for other programs."""

from __future__ import annotations

from mobileo_mlx.errors import OptionError

NAME = "export"


def command() -> None:
    """Write a model for another program."""
    raise OptionError("this is not written yet.")
