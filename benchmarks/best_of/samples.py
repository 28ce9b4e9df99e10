"""Captions and edits of the shapes world, and what a model draws of each: several candidates, kept in a folder.

Drawing takes far longer than judging and does not depend on it, so candidates are drawn once. A sample's candidates are
one PNG, beside each other, and a sample depends on the seed, its row and its index alone: a folder can be added to.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..shapes.edits import EDIT_TYPES, Edit, sample_edit
from ..shapes.score import caption_samplers
from ..shapes.scorer import edit_succeeded, read_picture, satisfies
from ..shapes.text import Caption
from ..shapes.world import render

if TYPE_CHECKING:
    from PIL import Image

    from mobileo_mlx import MobileO

CANDIDATES = 8
DRAWINGS = tuple(caption_samplers())
EDITS = tuple(f"edit: {kind}" for kind in EDIT_TYPES)
ROWS = (*DRAWINGS, *EDITS)


@dataclass(frozen=True)
class Sample:
    """A caption or an edit.

    Attributes:
        row: of `ROWS`.
        index: in its row.
        seed: of the first candidate.
        asked: what the candidates are to show.
    """

    row: str
    index: int
    seed: int
    asked: Caption | Edit

    @property
    def text(self) -> str:
        return self.asked.text

    @property
    def seeds(self) -> list[int]:
        """Of all candidates: the first is what is drawn without best-of."""
        return [(self.seed + k * 2**32) % 2**64 for k in range(CANDIDATES)]

    @cached_property
    def before(self) -> Image.Image | None:
        """The image that is edited, at the size of the bundled model."""
        from PIL import Image

        return Image.fromarray(render(self.asked.before)) if isinstance(self.asked, Edit) else None

    def right(self, image: Image.Image) -> bool:
        """What the independent scorer says of a candidate."""
        reading = read_picture(np.asarray(image.convert("RGB")))
        if isinstance(self.asked, Edit):
            return edit_succeeded(reading, self.asked)
        return satisfies(reading, self.asked.spec)


@dataclass(frozen=True)
class Drawn:
    """A sample's candidates, and the processor seconds that drawing all of them took."""

    sample: Sample
    candidates: list[Image.Image]
    seconds: float


def samples(counts: Mapping[str, int], seed: int) -> Iterator[Sample]:
    """The samples of all rows; their first ones first, so that whenever it is stopped there are some of each."""
    for index in range(max(counts.values(), default=0)):
        for row, count in counts.items():
            if index < count:
                yield _sample(row, index, seed)


def draw(model: MobileO, sample: Sample, folder: Path) -> Drawn:
    """Draws a sample's candidates, or reads those that are in the folder.

    Raises:
        ImageError, OutputError: a file there is damaged, or can't be written.
    """
    from mobileo_mlx.images import load_image, read_metadata, save_png

    path = folder / sample.row.replace(":", "").replace(" ", "-") / f"{sample.index:05}.png"
    if path.exists():
        notes, strip = read_metadata(path), load_image(path)
        width = strip.width // CANDIDATES
        pictures = [strip.crop((k * width, 0, (k + 1) * width, strip.height)) for k in range(CANDIDATES)]
        return Drawn(sample, pictures, float(notes["seconds"]))
    begin = time.process_time()
    if sample.before is None:
        pictures = model.generate(sample.text, seed=sample.seeds).images
    else:
        pictures = model.edit(sample.before, sample.text, seed=sample.seeds).images
    seconds = time.process_time() - begin
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(_strip(pictures), path, {"prompt": sample.text, "seeds": sample.seeds, "seconds": seconds})
    return Drawn(sample, pictures, seconds)


def _sample(row: str, index: int, seed: int) -> Sample:
    rng = np.random.default_rng([seed, zlib.crc32(row.encode()), index])
    asked: Caption | Edit
    asked = caption_samplers()[row](rng) if row in DRAWINGS else sample_edit(rng, row.removeprefix("edit: "))
    return Sample(row, index, int(rng.integers(2**32)), asked)


def _strip(pictures: list[Image.Image]) -> Image.Image:
    from PIL import Image

    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for k, picture in enumerate(pictures):
        strip.paste(picture, (k * width, 0))
    return strip
