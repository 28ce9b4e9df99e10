"""Latents: noise from a seed, and the way from images to latents and back through the autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from .images import to_signed
from .not_finite import check_finite

if TYPE_CHECKING:
    from PIL import Image

    from .models.mobileo import MobileOConfig
    from .parts import Parts

LARGE_LATENTS = 1000.0  # in absolute value; those of noise and images are near 1


def noise(config: MobileOConfig, seed: int, width: int, height: int) -> mx.array:
    """The initial latents of a seed for an image of a size in pixels, (1, h, w, latent_channels) float32, evaluated."""
    factor = config.vae.factor
    shape = (1, height // factor, width // factor, config.vae.latent_channels)
    latents = mx.random.normal(shape, key=mx.random.key(seed))
    mx.eval(latents)  # for any thread
    return latents


def encode_latents(parts: Parts, image: Image.Image) -> mx.array:
    """Scaled latents of an image, (1, h, w, latent_channels) float32, evaluated.

    Raises:
        NotFiniteError: there is NaN or infinity among them.
    """
    latents = parts.vae_encoder.encode(to_signed(image)).astype(mx.float32) * parts.config.vae.scaling_factor
    check_finite(parts, "vae_encoder", latents)
    return latents


def decode_latents(parts: Parts, latents: mx.array) -> mx.array:
    """The images of scaled latents (B, h, w, latent_channels): (B, H, W, 3) float32, about [-1, 1], evaluated.

    Raises:
        NotFiniteError: there is NaN or infinity in one of them.
    """
    # One after the other: at full resolution a single image fills hundreds of megabytes.
    decoder, scaled, images = parts.vae_decoder, latents / parts.config.vae.scaling_factor, []
    for latent in scaled:
        images.append(decoder.decode(latent[None]).astype(mx.float32))
        check_finite(parts, "vae_decoder", images[-1], other_cause=lambda: _size_fault(latents))
    return mx.concatenate(images)


def _size_fault(latents: mx.array) -> str:
    """Whether latents are far larger than any image's, and the remedy."""
    size = float(mx.abs(latents).max())
    if size <= LARGE_LATENTS:
        return ""
    return f"its latents are as large as {size:.2g}; choose a smaller guidance scale, or adapter scale if there is one"


def noised(latents: mx.array, noise: mx.array, sigmas: mx.array | float) -> mx.array:
    """Flow matching's path x_t = (1 - sigma) latents + sigma noise (SANA, arXiv 2410.10629, section 3.1).

    Args:
        latents, noise: (B, h, w, C).
        sigmas: (B,) in [0, 1], or one number for all.
    """
    s = sigmas[:, None, None, None] if isinstance(sigmas, mx.array) else sigmas
    return (1 - s) * latents + s * noise
