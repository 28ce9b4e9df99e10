"""CLIP (arXiv 2103.00020): a vision transformer and a text transformer whose outputs lie in one space.

Matches transformers' `CLIPModel`, whose parameter names it has, and open_clip's `ViT-L-14` with OpenAI's weights:

- the image encoder is a ViT with a class token, a LayerNorm before the first layer, and one behind the class token of
  the last; patches are embedded without a bias;
- the text encoder is a decoder-only transformer with causal attention; a text is the state of its end token;
- both put the LayerNorm before attention and MLP, and their activation is x sigmoid(1.702 x).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import mlx.core as mx
import mlx.nn as nn

from ...config import Config, Count, Epsilon, Range, Width
from ...ops.activations import gelu
from ...ops.attention import masked_attention

LEGACY_EOS = 2  # in old configurations, the published one among them: the end token is the one with the largest id

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class EncoderConfig(Config):
    """What both transformers have; keys and defaults as in transformers."""

    hidden_size: Width
    intermediate_size: Width  # channels inside the MLP
    num_hidden_layers: Count
    num_attention_heads: Count
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    def problem(self) -> str:
        if self.hidden_size % self.num_attention_heads:
            return f"has hidden_size = {self.hidden_size}, no multiple of num_attention_heads"
        return ""


@dataclass(frozen=True)
class TextConfig(EncoderConfig):
    """The text encoder's dimensions."""

    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 8
    vocab_size: Annotated[int, Range(1, 2**22)] = 49408
    max_position_embeddings: Annotated[int, Range(2, 2**16)] = 77
    eos_token_id: Annotated[int, Range(0, 2**22)] = 49407


@dataclass(frozen=True)
class VisionConfig(EncoderConfig):
    """The image encoder's dimensions."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    image_size: Annotated[int, Range(1, 4096)] = 224
    patch_size: Annotated[int, Range(1, 1024)] = 32

    @property
    def positions(self) -> int:
        """Of the patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class CLIPConfig(Config):
    """Both encoders, and the size of the space that they share."""

    text_config: TextConfig = field(default_factory=TextConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projection_dim: Width = 512


VIT_L_14 = CLIPConfig(
    TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
    VisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14),
    projection_dim=768,
)


class Attention(nn.Module):
    """Multi-head attention, with biases."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        dim = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def __call__(self, x: mx.array, mask: str | None) -> mx.array:
        """(B, T, hidden_size) to the same."""
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)  # (B, heads, T, head_dim)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = masked_attention(q, k, v, q.shape[-1] ** -0.5, mask, training=self.training)
        return self.out_proj(y.swapaxes(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the activation between them, on (..., hidden_size)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._activation = quick_gelu if config.hidden_act == "quick_gelu" else gelu

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self._activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Attention, then the MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, x: mx.array, mask: str | None) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers of a transformer."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def states(self, x: mx.array, mask: str | None) -> Iterator[mx.array]:
        """Yields the input, (B, T, hidden_size), and the output of every layer."""
        yield x
        for layer in self.layers:
            x = layer(x, mask)
            yield x


class TextEmbeddings(nn.Module):
    """Tokens and their positions."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, input_ids: mx.array) -> mx.array:
        """(B, T) to (B, T, hidden_size)."""
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class TextModel(nn.Module):
    """The text encoder."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._eos = config.eos_token_id

    def states(self, input_ids: mx.array) -> Iterator[mx.array]:
        """The embeddings and the output of every layer, (B, T, hidden_size)."""
        return self.encoder.states(self.embeddings(input_ids), "causal")

    def pooled(self, input_ids: mx.array, state: mx.array) -> mx.array:
        """(B, hidden_size): the state of each text's end token, of the last layer's output.

        What stands behind that token makes no difference, as attention is causal. So no mask is needed.
        """
        found = input_ids if self._eos == LEGACY_EOS else input_ids == self._eos
        ends = mx.argmax(found, axis=1)
        return self.final_layer_norm(state[mx.arange(len(ends)), ends])

    def __call__(self, input_ids: mx.array) -> mx.array:
        """(B, T) to (B, hidden_size)."""
        return self.pooled(input_ids, _last(self.states(input_ids)))


class VisionEmbeddings(nn.Module):
    """A class token and the patches, with their positions."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        size = config.patch_size
        self.class_embedding = mx.zeros(config.hidden_size)
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, size, stride=size, bias=False)
        self.position_embedding = nn.Embedding(config.positions, config.hidden_size)

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """(B, image_size, image_size, 3) to (B, positions, hidden_size)."""
        patches = self.patch_embedding(pixel_values).flatten(1, 2)
        first = mx.broadcast_to(self.class_embedding, (len(patches), 1, patches.shape[-1]))
        return mx.concatenate([first, patches], axis=1) + self.position_embedding.weight


class VisionModel(nn.Module):
    """The image encoder; `pre_layrnorm` is spelled so in the checkpoints."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def states(self, pixel_values: mx.array) -> Iterator[mx.array]:
        """The embeddings behind their LayerNorm, and the output of every layer, (B, positions, hidden_size)."""
        return self.encoder.states(self.pre_layrnorm(self.embeddings(pixel_values)), None)

    def pooled(self, state: mx.array) -> mx.array:
        """(B, hidden_size): the class token of the last layer's output."""
        return self.post_layernorm(state[:, 0])

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """(B, image_size, image_size, 3) to (B, hidden_size)."""
        return self.pooled(_last(self.states(pixel_values)))


class CLIP(nn.Module):
    """Images and texts as vectors of one space; see `clip_weights.load_clip`."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = TextModel(config.text_config)
        self.vision_model = VisionModel(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = mx.array(2.6592)  # the logarithm of the scale

    def image_features(self, pixel_values: mx.array) -> mx.array:
        """(B, projection_dim), not normalised.

        Args:
            pixel_values: (B, image_size, image_size, 3), see `clip_images.pixel_values`.
        """
        return self.visual_projection(self.vision_model(pixel_values))

    def text_features(self, input_ids: mx.array) -> mx.array:
        """(B, projection_dim), not normalised.

        Args:
            input_ids: (B, T), each row with an end token; see `clip_tokens.ClipTokenizer`.
        """
        return self.text_projection(self.text_model(input_ids))

    def __call__(self, pixel_values: mx.array, input_ids: mx.array) -> mx.array:
        """The logits of images (rows) and texts (columns): scaled cosines (figure 3 of the paper)."""
        images, texts = (
            features / mx.linalg.norm(features, axis=-1, keepdims=True)
            for features in (self.image_features(pixel_values), self.text_features(input_ids))
        )
        return mx.exp(self.logit_scale) * images @ texts.T


def quick_gelu(x: mx.array) -> mx.array:
    """x sigmoid(1.702 x), the approximation of GELU (arXiv 1606.08415) that OpenAI's weights were trained with."""
    return x * mx.sigmoid(1.702 * x)


def _last(states: Iterator[mx.array]) -> mx.array:
    """The last one; the others are dropped as they come, so that none is kept in memory."""
    state = next(states)
    for state in states:  # noqa: B007
        pass
    return state
