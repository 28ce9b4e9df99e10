"""The components that are trained, as one module, and the joint objective on a batch (Mobile-O, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ..conditioning import IGNORED_LABEL, MultimodalInputs, embed_prompts, hidden_states, text_input
from ..models.fastvithd import FastViTHD, MMProjector
from ..models.mcp import MobileConditioningProjector
from ..models.qwen2 import Qwen2Model
from ..models.sana import SanaTransformer
from .lora import set_dropout_key
from .losses import answer_losses, flow_matching_loss

ANSWER_WEIGHT = 0.2  # of the answers' loss, beside 1 for the drawing


@dataclass(frozen=True)
class TokenBatch:
    """The token sequences of a batch, and their images in the order of their places.

    Attributes:
        input_ids: B rows, each of its own length.
        labels: of the same lengths.
        pixels: what the vision tower sees, (images, H, W, 3); None where `features` are given or there is no image.
        features: instead of pixels the output of a frozen tower, (images, tokens, channels).
        padding: the token that short rows end in, as upstream's where no row has an image; zeros by default.
    """

    input_ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    pixels: mx.array | None = None
    features: mx.array | None = None
    padding: int | None = None


@dataclass(frozen=True)
class Batch:
    """What one forward and backward pass sees.

    Attributes:
        drawing: the sequences that condition the drawings.
        answers: those whose labels are predicted. The same object as `drawing` where one sequence does both, None
            where no answers are trained.
        latents: of the images, scaled, (B, h, w, latent_channels) float32.
        noise: of the same shape.
        sigmas: noise levels, (B,) in [0, 1].
        dropped: (B,) bool, True where the conditioning is replaced by that of zero hidden states.
        answer_tokens: what the sum of the answers' losses is divided by. It is the mean over all parts that one step
            is computed in, so that the mean of the parts is the mean over all tokens.
        names: of the samples, for messages.
    """

    drawing: TokenBatch
    answers: TokenBatch | None
    latents: mx.array
    noise: mx.array
    sigmas: mx.array
    dropped: mx.array
    answer_tokens: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class JointLoss:
    """How the loss of a batch is computed.

    Attributes:
        answer_weight: of the cross-entropy of answers.
        upstream: padding is treated as upstream does: the connector has no mask, so padding changes what it says.
        dtype: of the computation where it is not that of the parameters: these stay in float32 for the optimizer.
        num_train_timesteps: the timestep at sigma 1.
        recompute: activations inside of blocks are computed again for the gradient and not kept.
    """

    answer_weight: float = ANSWER_WEIGHT
    upstream: bool = False
    dtype: mx.Dtype | None = None
    num_train_timesteps: int = 1000
    recompute: bool = False

    def __call__(self, network: TrainableModel, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        """The loss and its parts. Nothing here is random but the adapters' dropout, which takes `key`.

        Returns:
            the loss, and `diffusion_loss` and `answer_loss` where there are answers.
        """
        set_dropout_key(network, key)
        with self.computing(network), ExitStack() as stack:
            if self.recompute:
                for blocks in (network.llm.layers, network.dit.transformer_blocks):
                    stack.enter_context(_recomputed(blocks))
            return self._loss(network, batch)

    @contextmanager
    def computing(self, network: TrainableModel) -> Iterator[None]:
        """What is trained has the dtype of the computation for as long as this lasts."""
        masters = network.trainable_parameters()
        try:
            if self.dtype is not None:
                network.update(tree_map(lambda p: p.astype(self.dtype), masters))
            yield
        finally:
            network.update(masters)

    def _loss(self, network: TrainableModel, batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        inputs = network.inputs(batch.drawing)
        states = hidden_states(network, inputs, mask_padding=self.upstream)
        mask = mx.array(inputs.attention_mask) if self.upstream else inputs.padding_mask
        text = text_input(network, states, mask=mask, dropped=batch.dropped, connect_padding=self.upstream)
        diffusion = flow_matching_loss(
            network.dit,
            batch.latents,
            batch.noise,
            batch.sigmas,
            text.states,
            attention_mask=text.mask,
            num_train_timesteps=self.num_train_timesteps,
        )
        if batch.answers is None:
            return diffusion, {"diffusion_loss": diffusion}
        if batch.answers is not batch.drawing:
            inputs = network.inputs(batch.answers)
            states = hidden_states(network, inputs, last=1, mask_padding=self.upstream)
        assert inputs.labels is not None
        answer = answer_losses(network.logits, states[-1], inputs.labels).sum() / batch.answer_tokens
        return diffusion + self.answer_weight * answer, {"diffusion_loss": diffusion, "answer_loss": answer}


class TrainableModel(nn.Module):
    """Some of the model's components, each under its name in `mobileo_mlx.models.mobileo.COMPONENTS`."""

    vision_tower: FastViTHD
    mm_projector: MMProjector
    llm: Qwen2Model
    diffusion_connector: MobileConditioningProjector
    dit: SanaTransformer

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in components.items():
            setattr(self, name, module)

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states (..., hidden_size) to logits; the transposed embedding where the checkpoint ties them."""
        return self.lm_head(hidden) if "lm_head" in self else self.llm.embed_tokens.as_linear(hidden)

    def image_features(self, rows: TokenBatch) -> list[mx.array]:
        """Each image's features for the language model, (tokens, hidden_size)."""
        features = rows.features if rows.pixels is None else self.vision_tower(rows.pixels)
        return [] if features is None else list(self.mm_projector(features))

    def inputs(self, rows: TokenBatch) -> MultimodalInputs:
        """The embeddings of sequences, with images in their places."""
        ids, labels = list(rows.input_ids), list(rows.labels)
        lengths = [len(row) for row in ids]
        if rows.padding is not None:
            missing = [max(lengths) - length for length in lengths]
            ids = [[*row, *[rows.padding] * n] for row, n in zip(ids, missing, strict=True)]
            labels = [[*row, *[IGNORED_LABEL] * n] for row, n in zip(labels, missing, strict=True)]
        inputs = embed_prompts(self.llm.embed_tokens, ids, self.image_features(rows), labels=labels)
        if rows.padding is not None:
            mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
            # The padding token's embedding is not trained.
            embeds = inputs.inputs_embeds
            embeds = mx.where(mx.array(mask)[..., None], embeds, mx.stop_gradient(embeds))
            inputs = MultimodalInputs(embeds, mask, inputs.labels)
        return inputs


class _Recomputed:
    """Stands where a block was while a loss is computed; its activations are computed again for the gradient."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._call: Callable[..., Any] = nn.utils.checkpoint(block)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


@contextmanager
def _recomputed(blocks: list[Any]) -> Iterator[None]:
    originals = list(blocks)
    blocks[:] = [_Recomputed(block) for block in originals]
    try:
        yield
    finally:
        blocks[:] = originals
