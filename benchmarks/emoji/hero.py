"""A picture of pictures with their prompts, for the top of a page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

PROMPTS = (
    "a red apple on a blue background",
    "an owl on a purple background",
    "two red hearts",
    "a fox on a green background",
    "a guitar",
    "a cat face next to a fish",
    "a robot on a yellow background",
    "three red apples on a pink background",
    "a unicorn on a pink background",
    "a sun above a cactus",
    "a sunflower on a blue background",
    "a cup of coffee and a croissant",
)
_SCALE = 1.5
_GAP, _LINE, _LINES = 16, 16, 2


def hero(prompts: Sequence[str], images: Sequence[Image.Image], *, columns: int = 4) -> Image.Image:
    """The images in rows, each above its prompt, on white."""
    from PIL import Image, ImageDraw, ImageFont

    side = round(_SCALE * images[0].width)
    width, height = side + _GAP, side + _GAP + _LINES * _LINE
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (255, 255, 255))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        page.paste(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
        lines = textwrap.wrap(prompt, side // 7)[:_LINES]
        for n, line in enumerate(lines):
            at = left + (side - pen.textlength(line, font=font)) / 2
            pen.text((at, top + side + 4 + n * _LINE), line, fill=(60, 60, 60), font=font)
    return page
