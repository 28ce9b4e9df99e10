"""Scenes of emoji: what stands where, on which background, and their pictures.

A caption decides the whole layout: things stand at fixed places in two or three sizes, as the small model needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .sprites import SIZES, sprites

SIDE = 128  # pixels
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (196, 198, 204),
    "black": (44, 44, 50),
    "pink": (255, 196, 214),
    "red": (224, 84, 80),
    "orange": (250, 166, 86),
    "yellow": (255, 226, 122),
    "green": (142, 206, 130),
    "blue": (122, 182, 242),
    "purple": (182, 150, 232),
}
CENTRE = (64, 64)
ROW = ((32, 64), (96, 64))
COLUMN = ((64, 32), (64, 96))
# Centres of one to four small things, by their number.
COUNTS = {1: (CENTRE,), 2: ROW, 3: ((64, 32), (32, 96), (96, 96)), 4: ((32, 32), (96, 32), (32, 96), (96, 96))}


@dataclass(frozen=True)
class Thing:
    """An emoji, as an index into `sprites.emoji(toned=True)`, its centre in pixels, and its size, of `SIZES`."""

    index: int
    x: int = 64
    y: int = 64
    size: str = "normal"


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str = "white"


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures, (B, SIDE, SIDE, 3) uint8."""
    pictures = np.empty((len(scenes), SIDE, SIDE, 3), np.uint8)
    for picture, scene in zip(pictures, scenes, strict=True):
        picture[:] = BACKGROUNDS[scene.background]
        for thing in scene.things:
            _lay(picture, sprites(thing.size)[thing.index], thing)
    return pictures


def _lay(picture: np.ndarray, sprite: np.ndarray, thing: Thing) -> None:
    """Lays a sprite over the picture; what is outside of it is cut off."""
    half = SIZES[thing.size] // 2
    left, top = thing.x - half, thing.y - half
    rows, columns = (slice(max(0, at), min(SIDE, at + 2 * half)) for at in (top, left))
    part = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    below = picture[rows, columns]
    below[:] = part[..., :3] + (below * (255 - part[..., 3:].astype(np.uint16)) + 127) // 255
