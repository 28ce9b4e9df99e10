"""What a detector finds in a picture: the one thing that the rules of GenEval know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Detection:
    """An object in a picture.

    Attributes:
        name: of its class.
        box: left, top, right and bottom edge in pixels.
        score: how sure the detector is, from 0 to 1.
        mask: (H, W) bool, its pixels; None where the detector gives none.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector(Protocol):
    """Finds the objects of a picture and their colours."""

    def detect(self, image: Image.Image) -> list[Detection]:
        """All objects of all classes, the surest first; the rules leave out those below their thresholds."""

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        """The colour of each object, one of GenEval's ten."""
