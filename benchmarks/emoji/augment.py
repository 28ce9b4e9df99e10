"""Pictures of single things as the classifier learns them: cut out a little off, blurred, off in colour, noisy.

All is drawn at once for a batch. Sides are those of the classifier's input.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .sprites import SIZES, sprites
from .world import BACKGROUNDS

SIDE = 48
ANGLE, SCALE, SHIFT = 5.0, 0.85, 0.06  # degrees; scales from this to its inverse; shares of the side
GAIN, OFFSET, NOISE = 0.1, 0.04, 0.04
_BLOCK = 8


def augmented(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One picture each of `sprites.emoji(toned=True)`, (B, SIDE, SIDE, 3) float32 in [0, 1]."""
    count = len(indices)
    pictures = _laid(_placed(indices, rng), _backgrounds(count, rng))

    def each(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1, 3)).astype(np.float32)

    pictures *= each(1 - GAIN, 1 + GAIN)
    pictures += each(-OFFSET, OFFSET)
    return worn(pictures, rng)


def worn(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (B, H, W, 3) float32 in [0, 1], blurred, noisy, half as JPEG makes them; in place."""
    count = len(pictures)

    def each(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)

    for step in (1, 2):
        pictures += np.maximum(each(-0.5, 1), 0) * (blurred(pictures, step) - pictures)
    half = rng.permutation(count)[: count // 2]
    pictures[half] = _quantised(pictures[half], rng)
    pictures += each(0, NOISE) * rng.standard_normal(pictures.shape, np.float32)
    return np.clip(pictures, 0, 1, out=pictures)


def _placed(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned, scaled and shifted sprites, (B, SIDE, SIDE, 4) float32 in [0, 1], colours multiplied by alpha."""
    count, side = len(indices), SIZES["small"]
    angle = np.radians(rng.uniform(-ANGLE, ANGLE, count))
    scale = side / SIDE * np.exp(rng.uniform(np.log(SCALE), -np.log(SCALE), count))
    shift = rng.uniform(-SHIFT, SHIFT, (2, count)) * side
    at = np.arange(SIDE) - (SIDE - 1) / 2
    cosine, sine = (scale * np.cos(angle))[:, None, None], (scale * np.sin(angle))[:, None, None]
    centre = (side + 1) / 2  # of the sprite with an empty frame of one pixel
    x = cosine * at[None, None, :] - sine * at[None, :, None] + centre + shift[0][:, None, None]
    y = sine * at[None, None, :] + cosine * at[None, :, None] + centre + shift[1][:, None, None]
    x, y = np.clip(x, 0, side + 0.999).astype(np.float32), np.clip(y, 0, side + 0.999).astype(np.float32)
    left, top = x.astype(np.int32), y.astype(np.int32)
    across, down = (x - left)[..., None], (y - top)[..., None]
    first = (indices[:, None, None] * (side + 2) + top) * (side + 2) + left

    def corner(step: int) -> np.ndarray:
        # Four bytes are fetched as one number.
        return _framed()[first + step].view(np.uint8).reshape(count, SIDE, SIDE, 4).astype(np.float32)

    above = corner(0) * (1 - across) + corner(1) * across
    below = corner(side + 2) * (1 - across) + corner(side + 3) * across
    return (above * (1 - down) + below * down) / 255


@cache
def _framed() -> np.ndarray:
    """All small sprites in an empty frame of one pixel, a pixel as one uint32."""
    framed = np.pad(sprites("small"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.ascontiguousarray(framed).view(np.uint32).ravel()


def _laid(sprite: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return sprite[..., :3] + (1 - sprite[..., 3:]) * colours[:, None, None]


def _backgrounds(count: int, rng: np.random.Generator) -> np.ndarray:
    """Colours, (B, 3) in [0, 1]: half of them the world's."""
    named = np.array(list(BACKGROUNDS.values()), np.float32)[rng.integers(len(BACKGROUNDS), size=count)] / 255
    return np.where(rng.random((count, 1)) < 0.5, named, rng.random((count, 3))).astype(np.float32)


def blurred(pictures: np.ndarray, step: int) -> np.ndarray:
    """Means of 3 x 3 pixels that are `step` apart."""
    padded = np.pad(pictures, ((0, 0), (step, step), (step, step), (0, 0)), mode="edge")
    rows = padded[:, : -2 * step] + padded[:, step:-step] + padded[:, 2 * step :]
    return (rows[:, :, : -2 * step] + rows[:, :, step:-step] + rows[:, :, 2 * step :]) / 9


def _quantised(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the coefficients of blocks' cosine transform rounded, high frequencies the more, as JPEG does."""
    count, height, width, _ = pictures.shape
    offset = tuple(int(at) for at in rng.integers(_BLOCK, size=2))
    moved = np.roll(pictures, offset, axis=(1, 2))
    basis = _cosines()
    parts = moved.reshape(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3).transpose(0, 1, 3, 5, 2, 4)
    frequency = 1 + np.arange(_BLOCK)[:, None] + np.arange(_BLOCK)[None, :]
    step = (rng.uniform(0.01, 0.1, (count, 1, 1, 1, 1, 1)) * frequency).astype(np.float32)
    rounded = step * np.rint(basis @ parts @ basis.T / step)
    parts = (basis.T @ rounded @ basis).transpose(0, 1, 4, 2, 5, 3)
    return np.roll(parts.reshape(pictures.shape), tuple(-at for at in offset), axis=(1, 2))


@cache
def _cosines() -> np.ndarray:
    """The orthonormal matrix of the discrete cosine transform (DCT-II)."""
    at = np.arange(_BLOCK)
    basis = np.cos(np.pi * at[:, None] * (2 * at[None, :] + 1) / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)
