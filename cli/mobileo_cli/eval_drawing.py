"""`mobileo-mlx eval dpg` and `imgedit`: the pictures that other projects score."""

from __future__ import annotations

from mobileo_mlx.errors import OptionError


def dpg() -> None:
    """Draw the prompts of DPG-Bench."""
    raise OptionError("this is not written yet.")


def imgedit() -> None:
    """Edit the images of ImgEdit-Bench."""
    raise OptionError("this is not written yet.")
