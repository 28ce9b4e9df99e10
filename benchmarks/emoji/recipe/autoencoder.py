"""How the bundled model `emoji` was made: its autoencoder, on scenes of all things there are."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.shapes.recipe.autoencoder import MOMENTS_WEIGHT, reconstruction
from benchmarks.shapes.world import pick

from ..sprites import SIZES, emoji
from ..world import BACKGROUNDS, CENTRE, COLUMN, COUNTS, ROW, Scene, Thing, render_batch

# Large errors at edges are what makes a picture look blurred.
EDGE_WEIGHT = 1.0
ALONE = 0.6  # share of scenes of one thing


def any_scene(rng: np.random.Generator, alone: float = ALONE) -> Scene:
    """One to four things of any kind, in any skin tone; `alone` is the share of scenes of one."""
    background, count = pick(rng, tuple(BACKGROUNDS)), len(emoji(toned=True))
    if rng.random() < alone:
        size = pick(rng, ("normal", "normal", *SIZES))
        return Scene((Thing(int(rng.integers(count)), *CENTRE, size),), background)
    places = pick(rng, (ROW, COLUMN, COUNTS[3], COUNTS[4]))
    return Scene(tuple(Thing(int(rng.integers(count)), x, y, "small") for x, y in places), background)


def batch(seed: int, size: int, step: int, part: int, *, frame: int = 0) -> dict[str, np.ndarray]:
    """Pictures (B, SIDE, SIDE, 3) uint8, and what counts in them, (B, SIDE, SIDE, 1) bool: things, and a frame."""
    rng = np.random.default_rng([seed, step, part])
    scenes = [any_scene(rng) for _ in range(size)]
    pictures = render_batch(scenes)
    grounds = np.array([BACKGROUNDS[scene.background] for scene in scenes], np.uint8)[:, None, None]
    objects = (pictures != grounds).any(axis=-1, keepdims=True)
    if frame:
        objects[:, :frame] = objects[:, -frame:] = objects[:, :, :frame] = objects[:, :, -frame:] = True
    return {"pixels": pictures, "objects": objects}


def loss(model: nn.Module, samples: dict[str, mx.array], key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """|e| + 2 e^2 of pixels and |e| of their differences, things weighted; latents are pulled to mean 0, variance 1."""
    error, weight, distance, moments = reconstruction(model, samples, key)
    across, down = error[:, :, 1:] - error[:, :, :-1], error[:, 1:] - error[:, :-1]
    edges = (weight[:, :, 1:] * mx.abs(across)).mean() + (weight[:, 1:] * mx.abs(down)).mean()
    parts = {"distance": distance, "edges": edges, "moments": moments, "squared": mx.square(error).mean()}
    return distance + EDGE_WEIGHT * edges + MOMENTS_WEIGHT * moments, parts
