"""Losses of the stages of small models, and the networks that a stage trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path, tree_unflatten

from mobileo_mlx.conditioning import text_input
from mobileo_mlx.models.fastvithd import FastViTHD
from mobileo_mlx.models.mobileo import MobileOConfig, build
from mobileo_mlx.schedulers import shift as shifted
from mobileo_mlx.training.losses import flow_matching_loss

from .stages import Batch, Loss, Recipe

AUTOENCODER = ("vae_encoder", "vae_decoder")
_SHARPNESS, _NAMED = 0.4, 0.5  # of the logits of kinds, and the weight of their loss
CONDITIONING_DROPOUT = 0.1  # shares of the texts replaced by zeros, for guidance


class StageModel(nn.Module):
    """The components that a stage trains, by their names; its loss calls those that it needs.

    They compute in the forms whose gradients are fast. BatchNorms keep their statistics.
    """

    def __init__(self, config: MobileOConfig, *components: str):
        super().__init__()
        for name in components:
            setattr(self, name, build(name, config))
        self.train()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm):
                module.eval()


def trained(recipe: Recipe, stage: str, *components: str) -> StageModel:
    """Components as an earlier stage left them; see `Recipe.weights`."""
    model = StageModel(recipe.config, *components)
    model.update(tree_unflatten(recipe.weights(stage, *components)))
    return model


def embedded(model: Any, batch: Batch, features: mx.array | None) -> tuple[mx.array, mx.array]:
    """What `conditioning.embed_prompts` makes of a batch, and its mask, in operations that can be compiled.

    Args:
        batch: of `Sequences.arrays`.
        features: (B, N, hidden_size), what stands for the image; None where the prompts have no image.

    Returns:
        embeddings (B, T, hidden_size), 0 where a row is padded, and (B, T) bool.
    """
    embeddings, mask = model.llm.embed_tokens(batch["ids"]), batch["mask"]
    if features is not None:
        place, shown = batch["place"], mx.ones(features.shape[:2], mx.bool_)
        embeddings = mx.concatenate([embeddings[:, :place], features, embeddings[:, place + 1 :]], axis=1)
        mask = mx.concatenate([mask[:, :place], shown, mask[:, place + 1 :]], axis=1)
    return embeddings * mask[..., None], mask


def question_loss(model: Any, batch: Batch, features: mx.array) -> mx.array:
    """Cross-entropy of the answers. Padding is on the right, so causal attention needs no mask."""
    embeddings, _ = embedded(model, batch, features)
    column = batch["column"] + (features.shape[1] - 1)  # answers come after the image
    logits = model.lm_head(model.llm(embeddings)[batch["row"], column])
    losses = nn.losses.cross_entropy(logits, batch["answer"], weights=batch["weight"])
    return losses.sum() / batch["weight"].sum()


def drawing_loss(
    model: Any,
    batch: Batch,
    features: mx.array | None,
    latents: mx.array,
    key: mx.array,
    *,
    shift: float,
    draws: int = 1,
    words_only: bool = False,
) -> mx.array:
    """Flow matching, conditioned as inference conditions.

    Args:
        latents: (B, h, w, latent_channels), what each text draws.
        shift: of the noise levels, see `mobileo_mlx.schedulers.shift`.
        draws: noises and noise levels for each text: the language model, which costs nearly as much as the DiT where
            there are few latents, then reads it once.
        words_only: leave the language model's layers out, as if they added nothing; `silence` makes it so.
    """
    noise_key, sigma_key, drop_key = mx.random.split(key, 3)
    embeddings, mask = embedded(model, batch, features)
    count = model.diffusion_connector.layer_weights.shape[0]
    if words_only:
        states = [*[embeddings] * (count - 1), model.llm.norm(embeddings)]
    else:
        states = model.llm.hidden_states(embeddings, count)
    dropped = mx.random.uniform(shape=(latents.shape[0],), key=drop_key) < CONDITIONING_DROPOUT
    text = text_input(model, states, mask=mask, dropped=dropped)
    latents = mx.repeat(latents, draws, axis=0)
    return flow_matching_loss(
        model.dit,
        latents,
        mx.random.normal(latents.shape, key=noise_key),
        shifted(logit_normal_sigmas(sigma_key, latents.shape[0]), shift),
        text.states,
        text.mask,
    )


def conditioning_change(model: Any, before: Any, batch: Batch, features: mx.array | None) -> mx.array:
    """How much the text that the DiT reads differs from what another language model gives: a share of its power.

    Args:
        model: its `llm` and its `diffusion_connector`, which both use.
        before: with the other `llm`.
        batch: of texts to draw, as in `drawing_loss`.
        features: what they see, or None.
    """
    embeddings, mask = embedded(model, batch, features)
    count = model.diffusion_connector.layer_weights.shape[0]
    now, then = (
        text_input(model, each.llm.hidden_states(embeddings, count), mask=mask).states for each in (model, before)
    )
    return (mx.square(now - then) * mask[..., None]).sum() / (mx.square(then) * mask[..., None]).sum()


def silence(llm: Any) -> None:
    """Makes the layers of a language model add nothing to its stream, from where they learn."""
    for layer in llm.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)


def logit_normal_sigmas(key: mx.array, batch: int) -> mx.array:
    """Noise levels (B,) of a logit-normal distribution (arXiv 2403.03206, section 3.1)."""
    return mx.sigmoid(mx.random.normal((batch,), key=key))


def feature_loss(target: Callable[[Any], mx.array], scale: mx.array, kinds: mx.array | None = None) -> Loss:
    """The squared error of image features, of batches of "pixels" with their "symbols".

    Args:
        target: symbols to the features that are right, (B, N, hidden_size).
        scale: the standard deviation of the targets.
        kinds: (K, hidden_size), directions of length 1 of the kinds of things that there are. Where there are many,
            squared errors alone learn hardly more than their mean, so the cross-entropy of each feature's kind is
            added; "kinds" of a batch (B, N) int32 are theirs, -1 where there is nothing.
    """

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        features = see(model, batch["pixels"])
        error = mx.square((features - target(batch["symbols"])) / scale).mean()
        if kinds is None:
            return error, {}
        there = (batch["kinds"] >= 0).astype(mx.float32)
        logits = features @ kinds.T / _SHARPNESS
        losses = nn.losses.cross_entropy(logits, mx.maximum(batch["kinds"], 0)) * there
        right = (logits.argmax(axis=-1) == batch["kinds"]) * there
        named, accuracy = losses.sum() / there.sum(), right.sum() / there.sum()
        return error + _NAMED * named, {"error": error, "named": named, "accuracy": accuracy}

    return loss


def see(model: Any, pictures: mx.array) -> mx.array:
    """Image features (B, N, hidden_size) of pictures (B, H, W, 3) uint8, as the model has them."""
    return model.mm_projector(model.vision_tower(pictures.astype(mx.float32) / 255))


def vision_model(config: MobileOConfig, pictures: mx.array) -> StageModel:
    """A vision tower that learns, with its projector.

    Args:
        pictures: (B, H, W, 3) uint8, on which its layers are scaled at first.
    """
    model: Any = StageModel(config, "vision_tower", "mm_projector")
    # The published networks start from 1e-5; so small a start would leave all images alike for long.
    model.update(
        tree_map_with_path(lambda k, v: mx.full(v.shape, 0.3) if "layer_scale" in k else v, model.parameters())
    )
    _standardise(model.vision_tower, pictures.astype(mx.float32) / 255)
    return model.train()  # BatchNorm learns its statistics


def _standardise(tower: FastViTHD, pictures: mx.array) -> None:
    """Scales each convolution so that every channel has mean 0 and variance 1 on `pictures` (arXiv 1511.06422).

    With the usual initial weights what differs between images is soon lost among the biases, and the loss hardly falls.
    """
    x = pictures
    for block in (block for blocks in tower.parts() for block in blocks):
        for part in getattr(block, "proj", [block]):
            holder = getattr(part, "token_mixer", part)
            for name in ("reparam_conv", "lkb_reparam"):
                if (convolution := getattr(holder, name, None)) is None:
                    continue
                y = convolution(x)
                mean, std = y.mean(axis=(0, 1, 2)), mx.sqrt(y.var(axis=(0, 1, 2)) + 1e-6)
                convolution.weight = convolution.weight / std.reshape(-1, *[1] * (convolution.weight.ndim - 1))
                convolution.bias = (convolution.bias - mean) / std
            x = part(x)
        mx.eval(x)
