"""An image to the objects in it by Mask2Former: what comes before the network and after it.

Both follow the test pipeline of OpenMMLab's configuration `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco` (mmdet 2),
which GenEval's scores were made with. docs/detectors.md says where transformers' image processor differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from ...checkpoints.digests import weights_digest
from ...files import read_text
from ..detections import Detection
from ..geneval_prompts import OBJECT_NAMES
from .mask2former import Mask2Former
from .mask2former_weights import find_tensors, load_mask2former

MAX_LONG, MAX_SHORT = 1333, 800  # pixels; an image is made as large as fits, smaller or larger than it was
MULTIPLE = 32
GREY = 128  # of what is padded, before the pixels are normalised
MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of red, green and blue
STD = np.array([58.395, 57.12, 57.375], np.float32)
MAX_OBJECTS = 100


class Mask2FormerDetector:
    """Finds objects of COCO's 80 classes.

    Args:
        network: with weights.
        names: of its classes, in order; GenEval's names of COCO's by default.
        identity: tells one set of weights from another.
    """

    def __init__(self, network: Mask2Former, names: Sequence[str] | None = None, identity: str = ""):
        self.network = network
        self.names = tuple(object_names() if names is None else names)
        self.identity = identity

    @classmethod
    def load(cls, path: str | Path) -> Mask2FormerDetector:
        """The detector with the weights of a file or folder.

        Raises:
            CheckpointError: see `load_mask2former`.
        """
        files = {info.file for info in find_tensors(Path(path)).values()}
        return cls(load_mask2former(path), identity=f"mask2former {weights_digest(files)[:16]}")

    def detect(self, image: Image.Image) -> list[Detection]:
        """At most 100 objects, the surest first, with masks of the image's size."""
        pixels, inside = prepare(image)
        class_logits, mask_logits = self.network(mx.array(pixels)[None])
        return instances(
            np.array(class_logits[0]),
            np.array(mask_logits[0]),
            padded=pixels.shape[:2],
            inside=inside,
            size=(image.height, image.width),
            names=self.names,
        )


@cache
def object_names() -> tuple[str, ...]:
    """GenEval's names of COCO's 80 classes, in COCO's order."""
    return tuple(read_text(OBJECT_NAMES, limit=2**16).split("\n")[:80])


def prepare(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """The network's input of an image.

    Returns:
        (H, W, 3) float32, normalised, of sides that are multiples of 32; and how many rows and columns of it are the
        image.
    """
    pixels = np.asarray(image.convert("RGB"))
    rows, columns = resized(*pixels.shape[:2])
    scaled = resize_pixels(pixels, (rows, columns))
    below, right = -rows % MULTIPLE, -columns % MULTIPLE
    whole = np.pad(scaled, ((0, below), (0, right), (0, 0)), constant_values=GREY)
    return (whole.astype(np.float32) - MEAN) / STD, (rows, columns)


def resized(height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is made to have: its sides' ratio is kept."""
    scale = min(MAX_LONG / max(height, width), MAX_SHORT / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to (*size, 3) uint8 as OpenCV's INTER_LINEAR does it, to a level of 255: without antialiasing."""
    if pixels.shape[:2] == size:
        return pixels
    columns = np.einsum("hwc,vw->hvc", pixels.astype(np.float32), weights_along(pixels.shape[1], size[1]))
    both = np.einsum("hvc,uh->uvc", columns, weights_along(pixels.shape[0], size[0]))
    return np.clip(np.floor(both + 0.5), 0, 255).astype(np.uint8)


def weights_along(size: int, length: int) -> np.ndarray:
    """(length, size) float32: what bilinear interpolation takes of each of `size` pixels for each of `length`."""
    place = np.maximum((np.arange(length) + 0.5) * (size / length) - 0.5, 0)
    first = np.minimum(place.astype(int), size - 1)
    second = np.minimum(first + 1, size - 1)
    part = np.clip(place - first, 0, 1)
    weights = np.zeros((length, size))
    np.add.at(weights, (np.arange(length), first), 1 - part)
    np.add.at(weights, (np.arange(length), second), part)
    return weights.astype(np.float32)


def instances(
    class_logits: np.ndarray,
    mask_logits: np.ndarray,
    *,
    padded: tuple[int, int],
    inside: tuple[int, int],
    size: tuple[int, int],
    names: Sequence[str],
) -> list[Detection]:
    """The network's answer as objects.

    The 100 surest pairs of a query and a class are taken, a query may be in several. A score is the class's probability
    times the mean probability of the pixels in the mask.

    Args:
        class_logits: (queries, classes + 1), the last for nothing.
        mask_logits: (queries, h, w).
        padded: rows and columns of the network's input.
        inside: those of them that are the image.
        size: rows and columns of the image itself, and of the masks.
        names: of the classes.

    Returns:
        the objects, the surest first; also those whose mask holds no pixel, with a score of 0 and an empty box.
    """
    scores = softmax(class_logits)[:, :-1]
    chosen = np.argsort(-scores, axis=None, kind="stable")[:MAX_OBJECTS]
    queries, classes = np.unravel_index(chosen, scores.shape)
    # The masks grow to the padded input, are cut to what is the image, and go to the image's own size, which along
    # each side is one matrix.
    grow_rows, grow_columns = (
        weights_along(inside[axis], size[axis])
        @ weights_along(mask_logits.shape[1 + axis], padded[axis])[: inside[axis]]
        for axis in (0, 1)
    )
    found = []
    grown: dict[int, tuple[np.ndarray, float]] = {}
    for query, kind in zip(queries.tolist(), classes.tolist(), strict=True):
        if query not in grown:
            logits = grow_rows @ mask_logits[query] @ grow_columns.T
            mask = logits > 0
            sure = 1 / (1 + np.exp(-logits[mask]))
            grown[query] = mask, float(sure.sum() / (mask.sum() + 1e-6))
        mask, sure_of_mask = grown[query]
        found.append(Detection(names[kind], box_of(mask), float(scores[query, kind]) * sure_of_mask, mask))
    return sorted(found, key=lambda detection: -detection.score)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of what a mask holds; the last row and column are inside of the box."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return (0.0, 0.0, 0.0, 0.0)
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)
