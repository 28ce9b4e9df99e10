"""`mobileo-mlx eval understanding`: the benchmarks of visual questions, by lmms-eval."""

from __future__ import annotations

from mobileo_mlx.errors import OptionError


def understanding() -> None:
    """Run benchmarks of visual questions."""
    raise OptionError("this is not written yet.")
