"""Contact sheets: pictures with what was asked for below them, framed green where right and red where wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 128  # of a picture, in pixels
_GAP = 8
_FRAME = 3
_LINE = 13
_LINES = 4
_LABEL = 18
_COLOURS = {True: (30, 150, 60), False: (205, 40, 40), None: (150, 150, 150)}


@dataclass(frozen=True)
class Tile:
    """One picture, or two in a row (before and after); `right` is None where there is nothing to judge."""

    images: tuple[Image.Image, ...]
    text: str
    right: bool | None = None


def draw_sheet(rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """The tiles in labelled rows, as an RGB image."""
    from PIL import Image, ImageDraw, ImageFont

    row_height = _LABEL + SIDE + 2 * _FRAME + _LINES * _LINE + _GAP
    width = max(sum(_width(tile) + _GAP for tile in tiles) for _, tiles in rows) + _GAP
    sheet = Image.new("RGB", (width, row_height * len(rows) + _GAP), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(11), ImageFont.load_default(13)
    for index, (label, tiles) in enumerate(rows):
        top = _GAP + index * row_height
        pen.text((_GAP, top), label, fill=(0, 0, 0), font=bold)
        top += _LABEL
        left = _GAP
        for tile in tiles:
            bottom = top + SIDE + 2 * _FRAME
            pen.rectangle((left, top, left + _width(tile) - 1, bottom - 1), fill=_COLOURS[tile.right])
            for k, image in enumerate(tile.images):
                at = (left + _FRAME + k * (SIDE + _FRAME), top + _FRAME)
                sheet.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), at)
            for n, line in enumerate(_wrapped(tile)):
                pen.text((left, bottom + 2 + n * _LINE), line, fill=(0, 0, 0), font=small)
            left += _width(tile) + _GAP
    return sheet


def _width(tile: Tile) -> int:
    return len(tile.images) * (SIDE + _FRAME) + _FRAME


def _wrapped(tile: Tile) -> list[str]:
    characters = 23 * len(tile.images)
    lines = [part for line in tile.text.splitlines() for part in textwrap.wrap(line, characters)]
    return lines[:_LINES]
