"""What a picture shows, but for which emoji: background, places, sizes and number, by rules.

- The background is the named colour that most pixels of the four corners are near to: large things, which touch the
  border, leave enough of them free.
- The foreground is what differs from those pixels' median by more than 30 of 765, after a blur that takes out noise.
- A caption decides the whole layout, so sizes, numbers and places are those of the true picture, among all that the
  caption could have asked for, whose foreground is most like the one found, by intersection over union.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from . import augment
from .sprites import SIZES, emoji
from .world import BACKGROUNDS, COLUMN, COUNTS, ROW, SIDE, Scene, Thing, render_batch

CORNER = 3  # pixels
FOREGROUND = 30  # of 765, summed over the channels
NEAR = 60  # of 765: how far pixels may be from the background that they show
SHOWN = 0.25  # of the corners' pixels, at least, show the background
STRAY = 0.05  # of the foreground, at most, may be where nothing was asked for
FILLED = 0.02  # of a thing's square, at least, is foreground


@dataclass(frozen=True)
class Picture:
    """A picture that a model drew.

    Attributes:
        pixels: (SIDE, SIDE, 3) uint8 sRGB.
    """

    pixels: np.ndarray

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        if image.size != (SIDE, SIDE):
            image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return cls(np.asarray(image.convert("RGB")))

    @cached_property
    def _near(self) -> np.ndarray:
        """Which of the corners' pixels are near each of `BACKGROUNDS`, (N, pixels) bool."""
        named = np.array(list(BACKGROUNDS.values()), np.float32)
        return np.abs(self._corners - named[:, None]).sum(axis=-1) < NEAR

    @cached_property
    def _corners(self) -> np.ndarray:
        ends = np.r_[:CORNER, SIDE - CORNER : SIDE]
        return self.pixels[np.ix_(ends, ends)].reshape(-1, 3).astype(np.float32)

    @cached_property
    def background(self) -> str | None:
        """Of `BACKGROUNDS`; None where no corner shows any, or several are as likely."""
        shares = self._near.mean(axis=1)
        second, first = np.sort(shares)[-2:]
        return tuple(BACKGROUNDS)[int(shares.argmax())] if first > max(SHOWN, second) else None

    @cached_property
    def ground(self) -> np.ndarray:
        """The background as it is drawn, (3,) float32."""
        shown = [] if self.background is None else self._near[list(BACKGROUNDS).index(self.background)]
        return np.median(self._corners[shown] if len(shown) else self._corners, axis=0)

    @cached_property
    def foreground(self) -> np.ndarray:
        """(SIDE, SIDE) bool."""
        return _foreground(self.pixels[None], self.ground)[0]

    def size_of(self, thing: Thing) -> str:
        """Which of `SIZES` a single thing has."""
        scenes = [Scene((replace(thing, size=size),), self.background or "white") for size in SIZES]
        return tuple(SIZES)[self._most_alike(tuple(scenes))]

    def number_of(self, thing: Thing) -> int:
        """How many of a thing there are, of `COUNTS`."""
        scenes = [counted(thing, number, self.background or "white") for number in COUNTS]
        return tuple(COUNTS)[self._most_alike(tuple(scenes))]

    def _most_alike(self, scenes: tuple[Scene, ...]) -> int:
        masks = true_foregrounds(scenes)
        union = (masks | self.foreground).sum(axis=(1, 2))
        return int(np.argmax((masks & self.foreground).sum(axis=(1, 2)) / np.maximum(union, 1)))

    def places_of_two(self) -> tuple[tuple[int, int], ...]:
        """Where two small things are: `ROW` or `COLUMN`."""
        return min(
            (ROW, COLUMN), key=lambda places: self.stray([Thing(0, x, y, "small") for x, y in places], bound=False)
        )

    def stray(self, things: Sequence[Thing], *, bound: bool = True) -> float:
        """The share of the foreground that is outside of the things' squares; 1 where a square is empty, if `bound`."""
        outside = self.foreground.copy()
        for thing in things:
            square = self.foreground[window(thing)]
            if bound and square.mean() < FILLED:
                return 1.0
            outside[window(thing)] = False
        return float(outside.sum() / max(1, self.foreground.sum()))

    def cut(self, thing: Thing) -> np.ndarray:
        """The thing's square as the classifier sees it, (S, S, 3) float32 in [0, 1], S of `augment.SIDE`."""
        half, frame = SIZES[thing.size] // 2, SIDE // 2
        left, top = thing.x - half + frame, thing.y - half + frame
        padded = np.empty((SIDE + 2 * frame, SIDE + 2 * frame, 3), np.uint8)
        padded[:] = np.rint(self.ground)
        padded[frame:-frame, frame:-frame] = self.pixels
        square = padded[top : top + 2 * half, left : left + 2 * half]
        small = Image.fromarray(square).resize((augment.SIDE, augment.SIDE), Image.Resampling.BOX)
        return np.asarray(small, np.float32) / 255

    def tone_of(self, thing: Thing) -> str | None:
        """The skin tone of a hand, None for the usual one: that of the true picture that is most like this one."""
        alike = toned(thing.index)
        scenes = [Scene((replace(thing, index=index),), self.background or "white") for index in alike]
        rows, columns = window(thing)
        difference = np.abs(render_batch(scenes).astype(np.int16) - self.pixels)[:, rows, columns]
        return emoji(toned=True)[alike[int(np.argmin(difference.mean(axis=(1, 2, 3))))]].tone


def counted(thing: Thing, number: int, background: str) -> Scene:
    """Some of the same thing."""
    return Scene(tuple(Thing(thing.index, x, y, "small") for x, y in COUNTS[number]), background)


def window(thing: Thing) -> tuple[slice, slice]:
    """Rows and columns of a thing's square, as far as the picture goes."""
    half = SIZES[thing.size] // 2
    rows, columns = (slice(max(0, at - half), min(SIDE, at + half)) for at in (thing.y, thing.x))
    return rows, columns


def toned(index: int) -> tuple[int, ...]:
    """The same emoji in all of its skin tones, as indices of `emoji(toned=True)`."""
    everything = emoji(toned=True)
    return tuple(i for i, each in enumerate(everything) if each.name == everything[index].name)


@lru_cache(maxsize=4096)
def true_foregrounds(scenes: tuple[Scene, ...]) -> np.ndarray:
    """The foregrounds of true pictures of one background, (B, SIDE, SIDE) bool; not to be written to."""
    return _foreground(render_batch(scenes), np.array(BACKGROUNDS[scenes[0].background], np.float32))


def _foreground(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    difference = augment.blurred(pixels.astype(np.float32) - ground, 1)
    return np.abs(difference).sum(axis=-1) > FOREGROUND
