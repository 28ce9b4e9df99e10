"""The curve of a run as a PNG file, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..images import save_png

if TYPE_CHECKING:
    from PIL import ImageDraw

Points = Sequence[tuple[float, float]]  # step, value
_SIZE = (800, 480)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 30, 20, 40
_COLOURS = ("#9ab8d8", "#1f4e8c", "#c8442c")


def plot_losses(losses: Points, held_out: Points, path: Path) -> None:
    """Draws the loss of each step, its running mean, and the held-out loss, on a logarithmic scale.

    Values that are not above 0 are left out, as such a scale has no place for them.

    Raises:
        OutputError: the file can't be written.
    """
    from PIL import Image, ImageDraw

    curves = {"loss": _positive(losses), "running mean": _positive(smoothed(losses)), "held out": _positive(held_out)}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    steps, values = [step for step, _ in points], [math.log10(value) for _, value in points]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.1
    frame = _Frame(min(steps), max(max(steps), min(steps) + 1), low - margin, high + margin)
    frame.draw(draw)
    for i, ((name, curve), colour) in enumerate(zip(curves.items(), _COLOURS, strict=True)):
        if not curve:
            continue
        line = [frame.place(step, math.log10(value)) for step, value in curve]
        draw.line(line, fill=colour, width=1 if name == "loss" else 2)
        if name == "held out":
            for x, y in line:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((_LEFT + 10 + 130 * i, 10), f"- {name}", fill=colour)
    save_png(image, path, overwrite=True)


def smoothed(points: Points, memory: float = 0.95) -> list[tuple[float, float]]:
    """The running mean, whose early values are means of what there is."""
    total, weight, out = 0.0, 0.0, []
    for step, value in points:
        total, weight = memory * total + value, memory * weight + 1
        out.append((step, total / weight))
    return out


def _positive(points: Points) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if value > 0 and math.isfinite(value)]


class _Frame:
    """The axes: steps along, decimal logarithms up."""

    def __init__(self, left: float, right: float, bottom: float, top: float) -> None:
        self.left, self.right, self.bottom, self.top = left, right, bottom, top

    def place(self, step: float, value: float) -> tuple[float, float]:
        width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
        x = _LEFT + width * (step - self.left) / (self.right - self.left)
        y = _TOP + height * (self.top - value) / (self.top - self.bottom)
        return x, y

    def draw(self, draw: ImageDraw.ImageDraw) -> None:
        draw.rectangle((_LEFT, _TOP, _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM), outline="#444444")
        for i in range(5):
            step = self.left + (self.right - self.left) * i / 4
            x, _ = self.place(step, self.bottom)
            draw.text((x - 12, _SIZE[1] - _BOTTOM + 8), f"{step:.0f}", fill="#444444")
            value = self.bottom + (self.top - self.bottom) * i / 4
            _, y = self.place(self.left, value)
            draw.line((_LEFT, y, _SIZE[0] - _RIGHT, y), fill="#e4e4e4")
            draw.text((8, y - 6), f"{10**value:.3g}", fill="#444444")
        draw.text((_SIZE[0] // 2, _SIZE[1] - 18), "step", fill="#444444")
