"""How the bundled model `tiny` was made: what the stages after the autoencoder train, and their losses."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mobileo_mlx.conditioning import MultimodalInputs, embed_prompts, hidden_states, text_input
from mobileo_mlx.models.mobileo import MobileOConfig, build
from mobileo_mlx.schedulers import shift as shifted
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.losses import answer_losses, flow_matching_loss

from ..world import Scene
from .curriculum import Sequences, symbols

Batch = dict[str, Any]
CONDITIONING_DROPOUT = 0.1  # shares of the texts replaced by zeros, for guidance


class StageModel(nn.Module):
    """The components that a stage trains, by their names; its loss calls those that it needs."""

    def __init__(self, config: MobileOConfig, *components: str):
        super().__init__()
        for name in components:
            setattr(self, name, build(name, config))


def symbol_features(model: Any, symbol_ids: mx.array) -> mx.array:
    """The features of an ideal vision tower, (B, N, hidden_size): the sum of the words of each image token."""
    return model.llm.embed_tokens(symbol_ids).sum(axis=2)


def symbol_ids(scenes: list[Scene], tokenizer: Tokenizer) -> mx.array:
    """(B, N, 4) ids; see `curriculum.symbols`."""
    return mx.array(np.stack([symbols(scene, tokenizer) for scene in scenes]))


def sequence_arrays(sequences: Sequences) -> Batch:
    """Token ids, labels and mask."""
    return {"ids": sequences.ids, "mask": sequences.mask, "labels": sequences.labels}


def _inputs(model: Any, batch: Batch, features: mx.array | None) -> MultimodalInputs:
    """The embeddings of a batch.

    Args:
        features: (B, N, hidden_size), what stands for the image; None where the prompts have no image.
    """
    images = [] if features is None else list(features)
    return embed_prompts(
        model.llm.embed_tokens, batch["ids"], images, attention_mask=batch["mask"], labels=batch["labels"]
    )


def question_loss(model: Any, batch: Batch, features: mx.array) -> mx.array:
    """Cross-entropy of the answers. Padding is on the right, so causal attention needs no mask."""
    inputs = _inputs(model, batch, features)
    assert inputs.labels is not None
    return answer_losses(model.lm_head, model.llm(inputs.inputs_embeds), inputs.labels).mean()


def drawing_loss(
    model: Any, batch: Batch, features: mx.array | None, latents: mx.array, key: mx.array, *, shift: float
) -> mx.array:
    """Flow matching, conditioned as inference conditions."""
    noise_key, sigma_key, drop_key = mx.random.split(key, 3)
    inputs = _inputs(model, batch, features)
    dropped = mx.random.uniform(shape=(latents.shape[0],), key=drop_key) < CONDITIONING_DROPOUT
    text = text_input(model, hidden_states(model, inputs), mask=inputs.padding_mask, dropped=dropped)
    return flow_matching_loss(
        model.dit,
        latents,
        mx.random.normal(latents.shape, key=noise_key),
        shifted(logit_normal_sigmas(sigma_key, latents.shape[0]), shift),
        text.states,
        text.mask,
    )


def logit_normal_sigmas(key: mx.array, batch: int) -> mx.array:
    """Noise levels (B,) of a logit-normal distribution (arXiv 2403.03206, section 3.1)."""
    return mx.sigmoid(mx.random.normal((batch,), key=key))
