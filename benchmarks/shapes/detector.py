"""The scorer's reading of a picture as a detector for the rules of GenEval, `benchmarks.shapes.detector:Detector`.

An object is found if it is like one of the world's shapes, and then for sure: its score is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mobileo_mlx.evals.detections import Detection

from .scorer import DetectedObject, read_picture


class Detector:
    """Reads pictures of the world of shapes; a `mobileo_mlx.evals.detections.Detector`."""

    def detect(self, image: Image.Image) -> list[Detection]:
        """All objects that have a shape."""
        return [
            Detection(found.shape, _box(found, image), 1.0)
            for found in read_picture(np.asarray(image)).objects
            if found.shape is not None
        ]

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        """The colour of each object, one of the world's eight."""
        colours = {_box(one, image): one.colour for one in read_picture(np.asarray(image)).objects}
        return [colours[one.box] for one in found]


def _box(found: DetectedObject, image: Image.Image) -> tuple[float, float, float, float]:
    width, height = image.size
    left, top = (found.x - found.width / 2) * width, (found.y - found.height / 2) * height
    return left, top, left + found.width * width, top + found.height * height
