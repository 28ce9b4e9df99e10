"""What the stages after the autoencoder train, and their losses."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mobileo_mlx.models.mobileo import MobileOConfig, build
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.losses import answer_loss, flow_matching_loss, logit_normal_sigmas

from ..world import Scene
from .batches import Sequences, symbols

Batch = dict[str, Any]
CONDITIONING_DROPOUT = 0.1  # shares of the texts replaced by zeros, for guidance


class Student(nn.Module):
    """Some of the model's components, by their names; the loss of a stage calls those that it needs."""

    def __init__(self, config: MobileOConfig, *components: str):
        super().__init__()
        for name in components:
            setattr(self, name, build(name, config))


def embed(model: Any, ids: mx.array, features: mx.array | None) -> mx.array:
    """Embeddings of prompts that all have their image, if any, in the same place.

    Args:
        ids: (B, T).
        features: (B, N, hidden_size), what stands for the image; None where the prompts have no image.
    """
    words = model.llm.embed_tokens(mx.maximum(ids, 0))
    if features is None:
        return words
    place = int(mx.argmax(ids[0] == IMAGE_TOKEN_INDEX))
    return mx.concatenate([words[:, :place], features, words[:, place + 1 :]], axis=1)


def with_image(values: np.ndarray, ids: np.ndarray, tokens: int, filling: Any) -> np.ndarray:
    """Makes room for an image's `tokens` in what goes with `ids`, such as labels (B, T)."""
    places = np.flatnonzero(ids[0] == IMAGE_TOKEN_INDEX)
    if not len(places):
        return values
    place = int(places[0])
    room = np.full((len(values), tokens), filling, values.dtype)
    return np.concatenate([values[:, :place], room, values[:, place + 1 :]], axis=1)


def symbol_features(model: Any, symbol_ids: mx.array) -> mx.array:
    """What an ideal vision tower would say, (B, N, hidden_size): the sum of the words of each image token."""
    return model.llm.embed_tokens(symbol_ids).sum(axis=2)


def symbol_ids(scenes: list[Scene], tokenizer: Tokenizer) -> mx.array:
    """(B, N, 4) ids; see `lessons.symbols`."""
    return mx.array(np.stack([symbols(scene, tokenizer) for scene in scenes]))


def sequence_arrays(sequences: Sequences, tokens: int) -> Batch:
    """Ids as they are; mask and labels with room for the image."""
    return {
        "ids": mx.array(sequences.ids),
        "mask": mx.array(with_image(sequences.mask, sequences.ids, tokens, True)),
        "labels": mx.array(with_image(sequences.labels, sequences.ids, tokens, -100)),
    }


def question_loss(model: Any, batch: Batch, features: mx.array) -> mx.array:
    """Cross-entropy of the answers. Padding is on the right, so causal attention needs no mask."""
    return answer_loss(model.lm_head, model.llm(embed(model, batch["ids"], features)), batch["labels"])


def drawing_loss(
    model: Any, batch: Batch, features: mx.array | None, latents: mx.array, key: mx.array, *, shift: float
) -> mx.array:
    """Flow matching, conditioned as inference conditions."""
    noise_key, sigma_key, drop_key = mx.random.split(key, 3)
    connector = model.diffusion_connector
    states = model.llm.hidden_states(embed(model, batch["ids"], features), connector.layer_weights.shape[0])
    keep = mx.random.uniform(shape=(latents.shape[0], 1, 1), key=drop_key) >= CONDITIONING_DROPOUT
    conditioning = connector([state * keep for state in states], batch["mask"])
    return flow_matching_loss(
        model.dit,
        latents,
        mx.random.normal(latents.shape, key=noise_key),
        logit_normal_sigmas(sigma_key, latents.shape[0], shift),
        conditioning,
        batch["mask"],
    )
