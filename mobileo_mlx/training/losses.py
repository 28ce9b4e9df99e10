"""The objectives: flow matching on latents, and cross-entropy on answers (Mobile-O, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..conditioning import IGNORED_LABEL
from ..latents import noised
from ..models.sana import SanaTransformer


def flow_matching_loss(
    dit: SanaTransformer,
    latents: mx.array,
    noise: mx.array,
    sigmas: mx.array,
    conditioning: mx.array,
    attention_mask: mx.array | None = None,
    num_train_timesteps: int = 1000,
) -> mx.array:
    """The mean squared error of the velocity, noise - latents, at x = (1 - sigma) latents + sigma noise.

    Args:
        latents: scaled and clean, (B, h, w, latent_channels).
        noise: of the same shape.
        sigmas: (B,) in [0, 1].
        conditioning: the connector's output, (B, N, caption_channels).
        attention_mask: (B, N) bool, False where a row is padded.
        num_train_timesteps: the timestep at sigma 1.
    """
    x_t = noised(latents, noise, sigmas)
    context = dit.encode_text(conditioning, attention_mask)
    velocity = dit(x_t, num_train_timesteps * sigmas, context)
    return ((velocity.astype(mx.float32) - (noise - latents)) ** 2).mean()


def answer_losses(lm_head: Callable[[mx.array], mx.array], hidden: mx.array, labels: np.ndarray) -> mx.array:
    """The cross-entropy of each label, predicted from the position before it: (labels that count,) float32.

    Logits are computed for these positions alone. With a real vocabulary, those of whole sequences with their images
    would take gigabytes.

    Args:
        lm_head: hidden states to logits.
        hidden: the language model's output, (B, T, hidden_size).
        labels: (B, T) int; `IGNORED_LABEL` does not count.
    """
    rows, columns = np.nonzero(labels[:, 1:] != IGNORED_LABEL)
    logits = lm_head(hidden[mx.array(rows), mx.array(columns)]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, mx.array(labels[rows, columns + 1]))


def upstream_sigmas(u: mx.array, num_train_timesteps: int = 1000) -> mx.array:
    """Upstream's noise levels for uniform `u` (B,) in [0, 1): one of the table's, 1 at u = 0 and 0.001 at the end."""
    return (num_train_timesteps - mx.floor(u * num_train_timesteps)) / num_train_timesteps
