"""How the bundled model `emoji` was made: its autoencoder, on parts of scenes and then on whole ones."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.shapes.recipe.autoencoder import LATENT_NOISE, MOMENTS_WEIGHT, OBJECT_WEIGHT
from benchmarks.shapes.world import pick

from ..sprites import SIZES, emoji
from ..world import BACKGROUNDS, CENTRE, COLUMN, COUNTS, ROW, SIDE, Scene, Thing, render_batch

LATENT = 16  # pixels of a latent's side
PART = 64  # pixels of the side of what is cut out of a scene
# Large errors at edges are what makes a picture look blurred.
EDGE_WEIGHT = 1.0


def any_scene(rng: np.random.Generator) -> Scene:
    """One to four things of any kind, in any skin tone."""
    background, count = pick(rng, tuple(BACKGROUNDS)), len(emoji(toned=True))
    if rng.random() < 0.6:
        size = pick(rng, ("normal", "normal", *SIZES))
        return Scene((Thing(int(rng.integers(count)), *CENTRE, size),), background)
    places = pick(rng, (ROW, COLUMN, COUNTS[3], COUNTS[4]))
    return Scene(tuple(Thing(int(rng.integers(count)), x, y, "small") for x, y in places), background)


def batch(seed: int, size: int, step: int, part: int, *, side: int = SIDE) -> dict[str, mx.array]:
    """Parts of scenes, (B, side, side, 3) in [-1, 1], in phase with the latents; and each pixel's weight (B, ..., 1).

    Blank parts teach little: the part that shows most, of three, is taken.
    """
    rng = np.random.default_rng([seed, step, part])
    scenes = [any_scene(rng) for _ in range(size)]
    pictures = render_batch(scenes)
    things = (pictures != np.array([BACKGROUNDS[s.background] for s in scenes], np.uint8)[:, None, None]).any(axis=-1)
    images, masks = [], []
    for picture, mask in zip(pictures, things, strict=True):
        corners = LATENT * rng.integers((SIDE - side) // LATENT + 1, size=(3, 2))
        parts = [(slice(y, y + side), slice(x, x + side)) for y, x in corners]
        chosen = max(parts, key=lambda at: mask[at].sum())
        images.append(picture[chosen])
        masks.append(mask[chosen])
    return {
        "image": mx.array(np.stack(images).astype(np.float32) / 127.5 - 1),
        "weight": mx.array(1 + OBJECT_WEIGHT * np.stack(masks)[..., None].astype(np.float32)),
    }


def loss(model: nn.Module, samples: dict[str, mx.array], key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """|e| + 2 e^2 of pixels and |e| of their differences, things weighted; latents are pulled to mean 0, variance 1."""
    autoencoder: Any = model
    latents = autoencoder.vae_encoder(samples["image"])
    noise = mx.random.normal(latents.shape, key=key)
    error = autoencoder.vae_decoder(latents + LATENT_NOISE * noise) - samples["image"]
    weight = samples["weight"]
    distance = (weight * (mx.abs(error) + 2 * mx.square(error))).mean()
    across, down = error[:, :, 1:] - error[:, :, :-1], error[:, 1:] - error[:, :-1]
    edges = (weight[:, :, 1:] * mx.abs(across)).mean() + (weight[:, 1:] * mx.abs(down)).mean()
    mean, variance = latents.mean(axis=(0, 1, 2)), latents.var(axis=(0, 1, 2))
    moments = (mx.square(mean) + mx.square(mx.log(variance + 1e-6))).mean()
    parts = {"distance": distance, "edges": edges, "moments": moments, "squared": mx.square(error).mean()}
    return distance + EDGE_WEIGHT * edges + MOMENTS_WEIGHT * moments, parts
