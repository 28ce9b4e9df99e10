"""Images as CLIP's image encoder takes them: those of open_clip's and torchvision's transform, pixel for pixel.

The shorter side becomes `size` by Pillow's bicubic filter, the middle is cut out, and channels are normalised.
transformers' image processor cuts out a column or row beside where the margins are odd: it rounds down, and torchvision
to the even number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixel_values(images: Sequence[Image.Image], size: int = 224) -> np.ndarray:
    """(B, size, size, 3) float32, normalised.

    Args:
        images: of any mode and size; transparency is dropped.
        size: of the network's input, in pixels.
    """
    pixels = np.stack([np.asarray(_cropped(image.convert("RGB"), size)) for image in images])
    return (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


def _cropped(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
