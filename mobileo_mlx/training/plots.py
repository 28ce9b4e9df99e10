"""The curves of a run as a PNG file, where matplotlib is installed. All numbers are in metrics.jsonl in any case."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from .guard import RunningMean


def can_plot() -> bool:
    """Whether matplotlib is installed, which the extra `bench` brings."""
    return find_spec("matplotlib") is not None


def plot_losses(metrics: list[dict[str, Any]], path: Path) -> None:
    """Plots the loss of each step, its running mean, and the held-out loss, on a logarithmic scale.

    Args:
        metrics: the lines of metrics.jsonl.
        path: of the PNG file, which is replaced.

    Raises:
        OutputError: the file can't be written.
    """
    # Without pyplot, which has global state and looks for a display.
    from matplotlib.figure import Figure

    steps = [line for line in metrics if "loss" in line]
    held_out = [
        (line["step"], line["held_out"]["loss"])
        for line in metrics
        if "held_out" in line and isinstance(line["held_out"]["loss"], int | float)  # and not null, for NaN
    ]
    mean = RunningMean()
    axes = (figure := Figure(figsize=(8, 4.8))).subplots()
    x = [line["step"] for line in steps]
    axes.plot(x, [line["loss"] for line in steps], color="#9ab8d8", linewidth=0.8, label="loss")
    axes.plot(x, [mean.add(line["loss"]) for line in steps], color="#1f4e8c", label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#c8442c", label="held out")
    axes.set(xlabel="step", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
