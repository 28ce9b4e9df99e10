"""Bars and curves as PNG files, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Points = Sequence[tuple[float, float]]
INK, RULE = "#333333", "#e4e4e4"
COLOURS = ("#1f4e8c", "#c8442c", "#4d8c57", "#8a5fa8", "#b8860b", "#5c6b73")
_PANEL = (520, 380)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 50, 20, 50


def bar_chart(panels: Mapping[str, Sequence[tuple[str, float]]], path: Path, *, ours: str) -> None:
    """One panel for each title, one bar for each name and value, on a logarithmic scale; `ours` stands out.

    Raises:
        OutputError: the file can't be written.
    """
    from PIL import Image, ImageDraw

    panels = {title: bars for title, bars in panels.items() if bars}
    height = 60 + 30 * max((len(bars) for bars in panels.values()), default=0)
    image = Image.new("RGB", (_PANEL[0], max(1, height * len(panels))), "white")
    draw = ImageDraw.Draw(image)
    left, right = 210, _PANEL[0] - 90
    for row, (title, bars) in enumerate(panels.items()):
        top = row * height
        draw.text((10, top + 14), title, fill=INK, font=_font(15))
        low = math.log10(min(value for _, value in bars)) - 0.3
        high = max(math.log10(max(value for _, value in bars)), low + 0.3)
        for i, (name, value) in enumerate(bars):
            y = top + 44 + 30 * i
            end = left + (right - left) * (math.log10(value) - low) / (high - low)
            draw.rectangle((left, y, end, y + 20), fill=COLOURS[0] if name == ours else "#b9c4cf")
            draw.text((left - 8, y + 10), name, fill=INK, font=_font(12), anchor="rm")
            told = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
            draw.text((end + 6, y + 10), told, fill=INK, font=_font(12), anchor="lm")
    _save(image, path)


def curves(panels: Sequence[tuple[str, str, str, Mapping[str, Points]]], path: Path) -> None:
    """Panels side by side, each (title, x label, y label, curve by name), both axes logarithmic.

    Raises:
        OutputError: the file can't be written.
    """
    from PIL import Image, ImageDraw

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    image = Image.new("RGB", (columns * _PANEL[0], rows * _PANEL[1]), "white")
    draw = ImageDraw.Draw(image)
    for i, (title, x_label, y_label, lines) in enumerate(panels):
        corner = (i % columns * _PANEL[0], i // columns * _PANEL[1])
        _panel(draw, corner, title, x_label, y_label, lines)
    _save(image, path)


def _panel(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points],
) -> None:
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    left, top = corner[0] + _LEFT, corner[1] + _TOP
    right, bottom = corner[0] + _PANEL[0] - _RIGHT, corner[1] + _PANEL[1] - _BOTTOM
    draw.text((left, corner[1] + 10), title, fill=INK, font=_font(15))
    if not xs:
        return
    x_range, y_range = _range(xs), _range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * _share(x, x_range),
            bottom - (bottom - top) * _share(y, y_range),
        )

    for y in _ticks(y_range):
        _, level = place(xs[0], y)
        draw.line((left, level, right, level), fill=RULE)
        draw.text((left - 6, level), f"{y:g}", fill=INK, font=_font(11), anchor="rm")
    for x in sorted(set(xs)):
        draw.text((place(x, ys[0])[0], bottom + 6), f"{x:g}", fill=INK, font=_font(11), anchor="ma")
    draw.rectangle((left, top, right, bottom), outline="#888888")
    draw.text(((left + right) / 2, bottom + 26), x_label, fill=INK, font=_font(12), anchor="ma")
    draw.text((left, top - 4), y_label, fill=INK, font=_font(11), anchor="ld")
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        placed = [place(x, y) for x, y in line]
        draw.line(placed, fill=colour, width=2)
        for x, y in placed:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((left + 10, top + 8 + 16 * i), name, fill=colour, font=_font(12))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The logarithms of the ends of an axis, with room on both sides."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.08 * (high - low), 0.05)
    return low - margin, high + margin


def _share(value: float, limits: tuple[float, float]) -> float:
    return (math.log10(value) - limits[0]) / (limits[1] - limits[0])


def _ticks(limits: tuple[float, float]) -> list[float]:
    """1, 2 and 5 times the powers of ten that are in range."""
    powers = range(math.floor(limits[0]), math.ceil(limits[1]) + 1)
    values = [n * 10.0**power for power in powers for n in (1, 2, 5)]
    return [value for value in values if limits[0] <= math.log10(value) <= limits[1]]


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _save(image: Image.Image, path: Path) -> None:
    from mobileo_mlx.images import save_png

    save_png(image, path, overwrite=True)
