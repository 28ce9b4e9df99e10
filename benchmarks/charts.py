"""Bars and curves as PNG files, by matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
OURS, OTHERS = "#1f4e8c", "#b9c4cf"
_WIDTH = 10.0  # inches
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
}


def available(path: Path) -> bool:
    """Whether charts can be drawn; says on standard error that the one at `path` is left out where not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        common.say(f"{path} is left out: matplotlib is missing; pip install -e '.[bench]'")
        return False
    return True


def bar_chart(panels: Mapping[str, Sequence[tuple[str, float]]], path: Path, *, ours: str) -> None:
    """One panel for each title, one bar for each name and value, on a logarithmic scale; `ours` stands out.

    Raises:
        OutputError: the file can't be written.
    """
    panels = {title: bars for title, bars in panels.items() if bars}
    heights = [1.2 + 0.26 * len(bars) for bars in panels.values()]

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, (title, bars) in zip(rows[:, 0], panels.items(), strict=True):
            names, values = zip(*bars, strict=True)
            drawn = axes.barh(range(len(bars)), values, color=[OURS if name == ours else OTHERS for name in names])
            axes.bar_label(drawn, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=3)
            axes.set_yticks(range(len(bars)), names)
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 2, max(values) * 3)
            axes.set_title(title)
            axes.grid(axis="x", color="#e4e4e4")
            axes.set_axisbelow(True)

    _save(draw, (_WIDTH, sum(heights, 0.1)), path)


def curves(panels: Sequence[tuple[str, str, str, Mapping[str, Points]]], path: Path) -> None:
    """Panels two in a row, each (title, x label, y label, curve by name), both axes logarithmic.

    The first curve of a panel has markers and its own ticks on the x axis; the others are dashed, for comparison.

    Raises:
        OutputError: the file can't be written.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _curves(axes, *panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)

    _save(draw, (_WIDTH * columns / 2, 3.2 * rows), path)


def _curves(axes: Axes, title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    for i, (name, line) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": OURS, "marker": "o"} if i == 0 else {"color": "#888888", "linestyle": "--"}
        axes.plot(*zip(*line, strict=True), label=name, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [x for x, _ in next(iter(lines.values()))]
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(color="#e4e4e4")
    axes.legend(frameon=False)


def _save(draw: Any, size: tuple[float, float], path: Path) -> None:
    """Draws on a figure of that size in inches, without a display, and writes it in place of an earlier one."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from mobileo_mlx.atomic import atomic_write

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=100)
        draw(figure)
        with atomic_write(path, overwrite=True) as temporary:
            figure.savefig(temporary, format="png", facecolor="white")
