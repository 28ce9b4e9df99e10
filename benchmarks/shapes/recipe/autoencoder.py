"""How the bundled model `tiny` was made: the stages of its autoencoder, on images of the shapes world."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..world import BACKGROUNDS, LAYOUTS, NEW_COLOURS, NEW_SHAPES, RGB, WORLD, Object, Scene, World, pick, render_batch
from .tiny import SIDE

OBJECT_WEIGHT = 3.0  # objects are a small part of the pixels and all of what counts
LATENT_NOISE = 0.05  # the decoder has to cope with the errors of sampled latents
MOMENTS_WEIGHT = 0.01  # without it the latents drift to any scale
# With the colours and shapes of later finetuning, which trains no decoder.
WIDE = World((*WORLD.shapes, *NEW_SHAPES), (*WORLD.colours, *NEW_COLOURS))


def any_scene(rng: np.random.Generator, world: World = WORLD) -> Scene:
    """One to four objects of any kind, held-out pairs among them: the autoencoder knows no words."""
    layout = pick(rng, LAYOUTS[1 + int(rng.integers(4))])
    return Scene(tuple(Object(*pick(rng, world.pairs), *place) for place in layout), pick(rng, BACKGROUNDS))


def batch(seed: int, size: int, step: int, part: int, *, world: World = WORLD) -> dict[str, np.ndarray]:
    """Pictures (B, SIDE, SIDE, 3) uint8, and where objects are, (B, SIDE, SIDE, 1) bool."""
    rng = np.random.default_rng([seed, step, part])
    scenes = [any_scene(rng, world) for _ in range(size)]
    pixels = render_batch(scenes, SIDE)
    ground = np.array([RGB[scene.background] for scene in scenes], np.uint8)[:, None, None]
    return {"pixels": pixels, "objects": (pixels != ground).any(axis=-1, keepdims=True)}


def reconstruction(
    model: Any, samples: dict[str, mx.array], key: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """What an autoencoder makes of a batch, through latents with some noise.

    Returns:
        the error of pixels in [-1, 1] (B, H, W, 3); the weight of each pixel (B, H, W, 1), larger where objects are;
        its weighted |e| + 2 e^2; and how far the latents are from mean 0 and variance 1.
    """
    image = samples["pixels"].astype(mx.float32) / 127.5 - 1
    weight = 1 + OBJECT_WEIGHT * samples["objects"].astype(mx.float32)
    latents = model.vae_encoder(image)
    error = model.vae_decoder(latents + LATENT_NOISE * mx.random.normal(latents.shape, key=key)) - image
    distance = (weight * (mx.abs(error) + 2 * mx.square(error))).mean()
    mean, variance = latents.mean(axis=(0, 1, 2)), latents.var(axis=(0, 1, 2))
    return error, weight, distance, (mx.square(mean) + mx.square(mx.log(variance + 1e-6))).mean()


def loss(model: nn.Module, samples: dict[str, mx.array], key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """|e| + 2 e^2, objects weighted, and a pull of each latent channel towards mean 0 and variance 1."""
    _, _, distance, moments = reconstruction(model, samples, key)
    return distance + MOMENTS_WEIGHT * moments, {"distance": distance, "moments": moments}
