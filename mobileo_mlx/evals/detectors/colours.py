"""The colour of a found object, by CLIP, as GenEval's official scorer has it (arXiv 2310.11513, section 3.2).

What is not of the object becomes grey, its box is cut out, and CLIP chooses among ten colours, each of which is the
mean of three prompts that name it and the object's class. Matches `evaluate_images.py` with its default options, and
`clip_benchmark`, which it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..detections import Detection
from ..geneval_rules import COLOURS
from .clip_images import pixel_values

BACKGROUND = (0x99, 0x99, 0x99)
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
_BATCH = 16  # as upstream

ImageEncoder = Callable[[np.ndarray], np.ndarray]
TextEncoder = Callable[[Sequence[str]], np.ndarray]


class ColourClassifier:
    """Names colours.

    Args:
        encode_images: (B, size, size, 3) float32 of `clip_images.pixel_values` to (B, D) float32 features.
        encode_texts: texts to (B, D) float32 features.
        size: of the image encoder's input, in pixels.
    """

    def __init__(self, encode_images: ImageEncoder, encode_texts: TextEncoder, size: int = 224) -> None:
        self._encode_images, self._encode_texts, self._size = encode_images, encode_texts, size
        self._weights: dict[str, np.ndarray] = {}  # (10, D) by class

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        """The colour of each object, one of `geneval_rules.COLOURS`."""
        return [COLOURS[np.argmax(row)] for row in self.logits(image, found)]

    def logits(self, image: Image.Image, found: Sequence[Detection]) -> np.ndarray:
        """(objects, 10) float32: 100 times the cosine of each object's crop and each colour."""
        crops = [crop(image, one) for one in found]
        rows = [np.zeros((0, len(COLOURS)), np.float32)]
        for begin in range(0, len(crops), _BATCH):
            batch = slice(begin, begin + _BATCH)
            features = _normalised(self._encode_images(pixel_values(crops[batch], self._size)))
            weights = np.stack([self._of_class(one.name) for one in found[batch]])  # (B, 10, D)
            rows.append(100 * np.einsum("bd,bcd->bc", features, weights))
        return np.concatenate(rows)

    def _of_class(self, name: str) -> np.ndarray:
        """(10, D): the direction of each colour, the mean of its prompts' directions."""
        if name not in self._weights:
            texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
            features = _normalised(self._encode_texts(texts)).reshape(len(COLOURS), len(TEMPLATES), -1)
            self._weights[name] = _normalised(features.mean(axis=1))
        return self._weights[name]


def crop(image: Image.Image, found: Detection) -> Image.Image:
    """An object's box, with grey where its mask is not; at least a pixel wide and high.

    Upstream's script ends with an error where a box is thinner than half a pixel.
    """
    image = image.convert("RGB")
    if found.mask is not None:
        blank = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, blank, Image.fromarray(np.asarray(found.mask, bool)))
    left, top, right, bottom = (round(float(edge)) for edge in found.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
