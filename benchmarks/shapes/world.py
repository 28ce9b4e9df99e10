"""Scenes of a few coloured shapes on a plain ground, and their pictures.

The definition is fixed, so that everybody means the same by "a red star": the geometry, the colours and the layout
below are the world's, and only `World.extended` adds to them. x grows to the right, y downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TypeVar

import numpy as np

from mobileo_mlx.errors import OptionError

_T = TypeVar("_T")
Pair = tuple[str, str]  # shape, colour

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "black")
BACKGROUNDS = ("white", "gray", "cyan", "beige")
CATEGORIES = ("single", "two", "count", "position")
HELD_OUT: frozenset[Pair] = frozenset(
    {("triangle", "purple"), ("star", "green"), ("cross", "orange"), ("diamond", "blue"), ("square", "pink")}
)
# Outside the world, for finetuning on something that the model has never seen.
NEW_COLOURS = ("brown",)
NEW_SHAPES = ("ring",)

RGB = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 220),
    "yellow": (250, 210, 40),
    "orange": (250, 130, 20),
    "purple": (140, 60, 190),
    "pink": (250, 130, 200),
    "black": (20, 20, 20),
    "brown": (140, 80, 30),
    "white": (255, 255, 255),
    "gray": (190, 190, 190),
    "cyan": (170, 230, 240),
    "beige": (240, 225, 190),
}  # sRGB

RADIUS = 0.18  # of every object, in sides of the image
GRID = (2, 4, 6)  # coordinates of centres, in eighths: an object covers exactly 2 x 2 cells of a 4 x 4 latent grid
UNITS = 8
MAX_COUNT = 4

_TRIANGLE = ((0.0, -1.0), (1.05, 0.85), (-1.05, 0.85))
_STAR = tuple(
    (
        1.1 * (1.0, 0.45)[k % 2] * math.sin(math.pi * k / 5),
        -1.1 * (1.0, 0.45)[k % 2] * math.cos(math.pi * k / 5) + 0.05,
    )
    for k in range(10)
)
_POLYGONS = {"triangle": _TRIANGLE, "star": _STAR}
# Half width and half height of the shapes that are symmetric.
_HALVES = {
    "circle": (1.0, 1.0),
    "square": (0.88, 0.88),
    "diamond": (0.8, 1.15),
    "cross": (1.0, 1.0),
    "ring": (1.0, 1.0),
}
_MASK_SAMPLES = 8  # per pixel and axis
# A box of whole pixels says to half a pixel where a shape ends; this matters for the points of a star.
_MARGINS = (-0.5, -0.25, 0.0, 0.25, 0.5)


@dataclass(frozen=True)
class Object:
    """A shape; `x` and `y` of its centre are in eighths of the side."""

    shape: str
    colour: str
    x: int
    y: int

    @property
    def pair(self) -> Pair:
        return self.shape, self.colour


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which a caption names them, on a ground."""

    objects: tuple[Object, ...]
    background: str = "white"

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(thing.pair for thing in self.objects)


@dataclass(frozen=True)
class World:
    """The names that may occur, and the pairs that no training sample shows or mentions."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    held_out: frozenset[Pair] = HELD_OUT

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(itertools.product(self.shapes, self.colours))

    def extended(self, name: str) -> World:
        """This world and one new colour or shape.

        Raises:
            OptionError: the name is neither in `NEW_COLOURS` nor in `NEW_SHAPES`.
        """
        if name in NEW_COLOURS:
            return World(self.shapes, (*self.colours, name), self.held_out)
        if name in NEW_SHAPES:
            return World((*self.shapes, name), self.colours, self.held_out)
        known = ", ".join((*NEW_COLOURS, *NEW_SHAPES))
        raise OptionError(f"'{name}' is not something new that can be drawn; choose one of {known}.")

    def allows(self, pairs: frozenset[Pair], held_out: bool | None) -> bool:
        """Whether pairs may occur: none held out (False), at least one (True), or any (None)."""
        return held_out is None or bool(pairs & self.held_out) == held_out


WORLD = World()


def _free_layouts(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ways to put `count` objects on the grid so that no two share a latent cell."""
    cells = tuple(itertools.product(GRID, GRID))
    return tuple(
        layout
        for layout in itertools.combinations(cells, count)
        if all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 4 for a, b in itertools.combinations(layout, 2))
    )


LAYOUTS = {count: _free_layouts(count) for count in range(1, MAX_COUNT + 1)}


def sample_scene(
    rng: np.random.Generator,
    category: str,
    *,
    background: str | None = "white",
    distinct_shapes: bool = False,
    held_out: bool | None = False,
    world: World = WORLD,
) -> Scene:
    """A random scene.

    Args:
        rng: where all randomness comes from.
        category: "single" (one object, any cell), "two" (in a row, the first on the left), "position" (in a row or a
            column, in either order), or "count" (one to four of the same).
        background: None for any, each as likely.
        distinct_shapes: two objects differ in shape, and not perhaps in colour alone.
        held_out: False for none of the held-out pairs, True for at least one, None for whatever comes.
        world: the names to choose from.
    """
    if background is None:
        background = pick(rng, BACKGROUNDS)
    while True:
        pairs = [pick(rng, world.pairs)]
        if category in ("two", "position"):
            pairs.append(pick(rng, world.pairs))
            if pairs[0] == pairs[1] or (distinct_shapes and pairs[0][0] == pairs[1][0]):
                continue
        if world.allows(frozenset(pairs), held_out):
            break
    if category == "single":
        places: Sequence[tuple[int, int]] = [pick(rng, LAYOUTS[1])[0]]
    elif category == "count":
        places = pick(rng, LAYOUTS[1 + int(rng.integers(MAX_COUNT))])
        pairs *= len(places)
    elif category == "two":
        row = pick(rng, GRID)
        places = [(2, row), (6, row)]
    elif category == "position":
        line = pick(rng, GRID)
        places = [(2, line), (6, line)] if rng.random() < 0.5 else [(line, 2), (line, 6)]
        if rng.random() < 0.5:
            places = places[::-1]
    else:
        raise OptionError(f"there is no category '{category}'; choose one of {', '.join(CATEGORIES)}.")
    objects = tuple(Object(*pair, x, y) for pair, (x, y) in zip(pairs, places, strict=True))
    return Scene(objects, background)


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture of a scene, (size, size, 3) uint8 sRGB, with anti-aliased edges."""
    return render_batch([scene], size)[0]


def render_batch(scenes: Sequence[Scene], size: int = 64) -> np.ndarray:
    """The pictures of scenes, (B, size, size, 3) uint8 sRGB."""
    pixels = np.empty((len(scenes), size, size, 3), np.uint8)
    for image, scene in zip(pixels, scenes, strict=True):
        image[:] = RGB[scene.background]
        for thing in scene.objects:
            rows, columns, coverage = _stamp(thing.shape, thing.x, thing.y, size)
            under = image[rows, columns]
            image[rows, columns] = np.rint(under + coverage * (np.array(RGB[thing.colour], np.float32) - under))
    return pixels


@lru_cache(maxsize=4096)
def box_masks(shape: str, width: int, height: int) -> np.ndarray:
    """The pixels of a shape that fills a box, for each of `_MARGINS`, (F, height, width) bool; not to be written to."""
    left, top, right, bottom = extent(shape)

    def samples(count: int, low: float, high: float, margin: float) -> np.ndarray:
        at = (np.arange(count * _MASK_SAMPLES) + 0.5) / _MASK_SAMPLES
        return low + (high - low) * (at + margin) / (count + 2 * margin)

    masks = []
    for margin in _MARGINS:
        x, y = samples(width, left, right, margin), samples(height, top, bottom, margin)
        masks.append(_mean_of_samples(_inside(shape, x[None, :], y[:, None]), _MASK_SAMPLES) >= 0.5)
    return np.stack(masks)


def extent(shape: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a shape of radius 1 around the origin."""
    if shape in _POLYGONS:
        xs, ys = zip(*_POLYGONS[shape], strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    half_width, half_height = _HALVES[shape]
    return -half_width, -half_height, half_width, half_height


@cache
def _stamp(shape: str, x: int, y: int, size: int) -> tuple[slice, slice, np.ndarray]:
    """Where an object lies in the image, and how much of each pixel there it covers, (h, w, 1) float32."""
    left, top, right, bottom = extent(shape)
    columns = _pixels(x / UNITS + left * RADIUS, x / UNITS + right * RADIUS, size)
    rows = _pixels(y / UNITS + top * RADIUS, y / UNITS + bottom * RADIUS, size)
    per_pixel = max(4, 1024 // size)  # and axis: the fewer pixels, the more each of them matters

    def samples(pixels: slice, centre: int) -> np.ndarray:
        count = (pixels.stop - pixels.start) * per_pixel
        at = pixels.start + (np.arange(count) + 0.5) / per_pixel
        return (at / size - centre / UNITS) / RADIUS

    inside = _inside(shape, samples(columns, x)[None, :], samples(rows, y)[:, None])
    return rows, columns, _mean_of_samples(inside, per_pixel)[..., None]


def _pixels(start: float, stop: float, size: int) -> slice:
    return slice(max(0, math.floor(start * size)), min(size, math.ceil(stop * size)))


def _mean_of_samples(inside: np.ndarray, samples: int) -> np.ndarray:
    height, width = inside.shape[0] // samples, inside.shape[1] // samples
    return inside.reshape(height, samples, width, samples).mean(axis=(1, 3), dtype=np.float32)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points belong to a shape of radius 1 around the origin; x and y broadcast."""
    if shape in _POLYGONS:
        return _in_polygon(_POLYGONS[shape], x, y)
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(ax, ay) <= 0.88
    if shape == "diamond":
        return ax / 0.8 + ay / 1.15 <= 1
    if shape == "cross":
        return (np.minimum(ax, ay) <= 0.33) & (np.maximum(ax, ay) <= 1)
    if shape == "ring":
        squared = x * x + y * y
        return (squared <= 1) & (squared >= 0.55**2)
    raise KeyError(shape)


def _in_polygon(vertices: Sequence[tuple[float, float]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Counts the edges that a ray to the right crosses: an odd number from inside."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x0, y0), (x1, y1) in zip(vertices, (*vertices[1:], vertices[0]), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside
