"""SANA (arXiv 2410.10629, section 2): the diffusion transformer that predicts the velocity of flow matching.

What is unusual in it:

- Self-attention is linear in the number of tokens (ReLU kernels in place of softmax), and the feed-forward network is
  convolutional (Mix-FFN). Its 3x3 convolutions say where a token is: there are no position embeddings.
- The autoencoder divides each side by 32, so that a patch is one latent pixel and 512x512 pixels are 256 tokens.
- The text enters through cross-attention alone, which reads the residual stream without a norm.
- The timestep enters through one modulation for all blocks, to which each block adds a table of its own
  (PixArt-alpha, arXiv 2310.00426, section 2.3).

Keys and values of the text depend on neither the latents nor the timestep: `SanaTransformer.encode_text` makes them.
What the steps of one drawing have in common is in `sana_prepared.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict, final

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, Count, Epsilon, Range, Ratio, Width
from ..ops.activations import softmax
from ..ops.attention import biased_attention
from ..ops.conv import channels_first, conv_weight, pointwise_weight
from .layers import GLUMBConv, relu_linear_attention

TIMESTEP_CHANNELS = 256
CAPTION_NORM_EPS = 1e-5
OUTPUT_NORM_EPS = 1e-6  # fixed in diffusers, whatever `norm_eps` says of the blocks
FLOAT16_MAX = 65504.0
MASKED = -10000.0  # added to the scores of masked text, as diffusers does


@dataclass(frozen=True)
class SanaConfig(Config):
    """Dimensions; keys as in diffusers' SanaTransformer2DModel, and `attention_eps`, which is ours."""

    num_layers: Count  # transformer blocks
    num_attention_heads: Count  # of the self-attention
    attention_head_dim: Count  # channels of each; the product is the width of the model
    num_cross_attention_heads: Count
    cross_attention_head_dim: Count
    caption_channels: Width  # of the text, the connector's output_dim
    in_channels: Count = 32  # of the latents
    out_channels: Count | None = 32  # of the velocity; None: in_channels
    mlp_ratio: Ratio = 2.5  # hidden channels of the feed-forward network / width
    patch_size: Annotated[int, Range(1, 16)] = 1  # latent pixels on a patch's side
    sample_size: Count = 16  # latent pixels on the side of a default image
    norm_eps: Epsilon = 1e-6
    attention_bias: bool = False  # of the self-attention's queries, keys and values
    interpolation_scale: Ratio | None = None  # sine-cosine positions; the published checkpoints have none
    attention_eps: Epsilon = 1e-15  # of the linear attention's normaliser

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def problem(self) -> str:
        if self.sample_size % self.patch_size:
            return f"has sample_size = {self.sample_size}, no multiple of patch_size = {self.patch_size}"
        if self.interpolation_scale is not None and self.dim % 4:
            return f"has num_attention_heads * attention_head_dim = {self.dim}, no multiple of 4 as positions need"
        if self.mlp_ratio * self.dim < 1:
            return f"has mlp_ratio = {self.mlp_ratio}, which leaves no channel"
        return ""


# Dicts, because a block's arguments go through MLX's transformations: a compiled block and one whose activations are
# computed again for the gradient know an array only in dicts, lists and tuples.


@final
class TextKV(TypedDict):
    """A text for one block as keys and values; the rows that read it are split evenly and in order among its R."""

    keys: mx.array  # (R, heads, N, head_dim)
    values: mx.array  # the same
    bias: mx.array | None  # (R, 1, 1, N), added to the scores


@final
class AbsorbedTextKV(TypedDict):
    """One text for all rows and one block, together with the block's projections; see `sana_cross_attention.absorb`."""

    a: mx.array  # (heads N, dim)
    a_bias: mx.array  # (heads N,)
    b: mx.array  # (heads N, dim)


BlockText = TextKV | AbsorbedTextKV


class TimestepEmbedder(nn.Module):
    """From the features of timesteps, (..., TIMESTEP_CHANNELS), to (..., dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(x)))


class TimestepEmbedding(nn.Module):
    """Cosines and sines of timesteps (S,), 0 to 1000, through two linear layers: (S, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(dim)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        half = TIMESTEP_CHANNELS // 2
        frequencies = mx.exp(-math.log(10000) * mx.arange(half, dtype=mx.float32) / half)
        # float32: near t = 1000 half precision would lose the phase.
        phase = timestep.astype(mx.float32)[:, None] * frequencies
        features = mx.concatenate([mx.cos(phase), mx.sin(phase)], axis=-1)
        return self.timestep_embedder(features.astype(dtype))


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks (PixArt-alpha, arXiv 2310.00426, section 2.3).

    From timesteps (S,) to the modulation (S, 6 dim) and the embedding (S, dim), which the output layer uses.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.emb = TimestepEmbedding(dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        embedded = self.emb(timestep, dtype)
        return self.linear(nn.silu(embedded)), embedded


class CaptionProjection(nn.Module):
    """From the text (R, N, caption_channels) to the width of the model, (R, N, dim)."""

    def __init__(self, caption_channels: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.gelu_approx(self.linear_1(x)))


class PatchEmbed(nn.Module):
    """A linear layer over each patch and, where the configuration asks for them, positions.

    From latents (B, h, w, in_channels) to tokens (B, T, dim), row by row.
    """

    def __init__(self, config: SanaConfig):
        super().__init__()
        self.patch = config.patch_size
        self.base_size = config.sample_size // config.patch_size
        self.interpolation_scale = config.interpolation_scale
        self.proj = nn.Linear(config.patch_size**2 * config.in_channels, config.dim)

    def __call__(self, latents: mx.array) -> mx.array:
        batch, height, width, channels = latents.shape
        p = self.patch
        rows, columns = height // p, width // p
        x = latents.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3)
        x = self.proj(x.reshape(batch, rows * columns, p * p * channels))
        if self.interpolation_scale is not None:
            x = x + self._positions(rows, columns, x.shape[-1], self.interpolation_scale).astype(x.dtype)
        return x

    def _positions(self, rows: int, columns: int, dim: int, scale: float) -> mx.array:
        """(rows * columns, dim): half of the channels for the column, half for the row."""

        def encode(count: int) -> mx.array:
            position = mx.arange(count) * (self.base_size / count / scale)
            frequencies = mx.exp(-math.log(10000) * mx.arange(dim // 4, dtype=mx.float32) / (dim // 4))
            phase = position[:, None] * frequencies
            return mx.concatenate([mx.sin(phase), mx.cos(phase)], axis=-1)  # (count, dim / 2)

        by_column = mx.broadcast_to(encode(columns)[None], (rows, columns, dim // 2))
        by_row = mx.broadcast_to(encode(rows)[:, None], (rows, columns, dim // 2))
        return mx.concatenate([by_column, by_row], axis=-1).reshape(rows * columns, dim)


class LinearAttention(nn.Module):
    """Self-attention with ReLU kernels (section 2.2), (B, T, dim) to (B, T, dim); see `relu_linear_attention`."""

    def __init__(self, config: SanaConfig):
        super().__init__()
        dim, bias = config.dim, config.attention_bias
        self.head_dim, self.eps = config.attention_head_dim, config.attention_eps
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = [nn.Linear(dim, dim)]

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(layer(x), self.head_dim) for layer in (self.to_q, self.to_k, self.to_v))
        y = self.to_out[0](merge_heads(relu_linear_attention(q, k, v, self.eps)))
        # As diffusers' SanaLinearAttnProcessor2_0: what leaves float16's range would be NaN after the next norm.
        return mx.clip(y, -FLOAT16_MAX, FLOAT16_MAX) if y.dtype == mx.float16 else y


class CrossAttention(nn.Module):
    """Softmax attention from the latents' tokens to the text.

    Queries are read from the residual stream as it is: there is a norm neither before them nor of queries and keys.
    Heads and their width are not those of the self-attention.
    """

    def __init__(self, config: SanaConfig):
        super().__init__()
        dim = config.dim
        self.heads, self.head_dim = config.num_cross_attention_heads, config.cross_attention_head_dim
        inner = self.heads * self.head_dim
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = [nn.Linear(inner, dim)]

    def read(self, text: mx.array, bias: mx.array | None = None) -> TextKV:
        """Keys and values of a projected text (R, N, dim); the bias as in `TextKV`."""
        keys, values = (split_heads(layer(text), self.head_dim) for layer in (self.to_k, self.to_v))
        return {"keys": keys, "values": values, "bias": bias}

    def __call__(self, x: mx.array, text: TextKV) -> mx.array:
        """What tokens (R, T, dim) read in the text, of the same shape."""
        keys, values, bias = text["keys"], text["values"], text["bias"]
        q = split_heads(self.to_q(x), self.head_dim)
        y = biased_attention(q, keys, values, self.head_dim**-0.5, bias, training=self.training)
        return self.to_out[0](merge_heads(y))


def attend(attention: CrossAttention, x: mx.array, text: BlockText) -> mx.array:
    """The residual stream x (B, T, dim) plus what it reads in the text."""
    if "a" in text:
        scores = mx.addmm(text["a_bias"], x, text["a"].T)  # (B, T, heads N)
        weights = softmax(scores.reshape(*scores.shape[:-1], attention.heads, -1))
        return mx.addmm(x, weights.reshape(scores.shape), text["b"])
    tokens = x.reshape(text["keys"].shape[0], -1, x.shape[-1])  # those that read one text side by side
    return x + attention(tokens, text).reshape(x.shape)


def text_bias(dtype: mx.Dtype, mask: mx.array | None, counts: mx.array | None = None) -> mx.array | None:
    """What is added to the scores of a text, (B, 1, 1, N), or None for nothing.

    Args:
        dtype: of the result.
        mask: (B, N) bool, True where a position is to be seen.
        counts: (N,), how many equal positions each stands for: c exp(s) = exp(s + log c).
    """
    if mask is None and counts is None:
        return None
    bias = mx.zeros((1, 1)) if mask is None else mx.where(mask, 0.0, MASKED)
    if counts is not None:
        bias = bias + mx.log(counts.astype(mx.float32))
    return bias.astype(dtype)[:, None, None, :]


def split_heads(x: mx.array, head_dim: int) -> mx.array:
    """From (B, T, heads * head_dim) to (B, heads, T, head_dim)."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    """From (B, heads, T, head_dim) to (B, T, heads * head_dim)."""
    return x.swapaxes(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """Linear self-attention, cross-attention to the text and Mix-FFN (section 2.2), each added to the stream.

    The first and the last are modulated by the timestep: norm, scale and shift before, a gate after.
    """

    def __init__(self, config: SanaConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = LinearAttention(config)
        self.attn2 = CrossAttention(config)
        self.ff = GLUMBConv(config.dim, config.mlp_ratio)
        self.scale_shift_table = mx.random.normal((6, config.dim)) * config.dim**-0.5

    def __call__(
        self, x: mx.array, modulation: mx.array, texts: Sequence[BlockText], size: tuple[int, int]
    ) -> mx.array:
        """The residual stream after the block.

        Args:
            x: (B, T, dim).
            modulation: of `modulations`, (B, 6, dim), or (1, 6, dim) where all rows have one timestep.
            texts: what the rows read, an equal share of them in order each.
            size: (rows, columns) of the T patches.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = mx.split(modulation, 6, axis=1)  # each (B or 1, 1, dim)
        x = x + gate_1 * self.attn1(modulated_norm(x, scale_1, shift_1, self.eps))
        parts = mx.split(x, len(texts)) if len(texts) > 1 else [x]
        read = [attend(self.attn2, part, text) for part, text in zip(parts, texts, strict=True)]
        x = mx.concatenate(read) if len(read) > 1 else read[0]
        y = modulated_norm(x, scale_2, shift_2, self.eps).reshape(-1, *size, x.shape[-1])
        return x + gate_2 * self.ff(y).reshape(x.shape)


def modulated_norm(x: mx.array, scale: mx.array, shift: mx.array, eps: float) -> mx.array:
    """scale norm(x) + shift over the channels of x (B, T, dim).

    Args:
        scale, shift: (B, 1, dim); or (1, 1, dim) for all rows, which then are weight and bias of the norm.
    """
    if len(scale) == 1:
        return mx.fast.layer_norm(x, scale.flatten(), shift.flatten(), eps)
    return mx.fast.layer_norm(x, None, None, eps) * scale + shift


class SanaTransformer(nn.Module):
    """The whole network: latents, timestep and text to the velocity, noise - clean latents.

    There is one timestep and one text for each row of a batch. Training and the comparisons with the reference use
    this form; `sana_prepared.PreparedSana` runs the same blocks for all steps of one drawing in less work.
    """

    def __init__(self, config: SanaConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.time_embed = AdaLayerNormSingle(config.dim)
        self.caption_projection = CaptionProjection(config.caption_channels, config.dim)
        self.caption_norm = nn.RMSNorm(config.dim, CAPTION_NORM_EPS)
        self.transformer_blocks = [TransformerBlock(config) for _ in range(config.num_layers)]
        self.scale_shift_table = mx.random.normal((2, config.dim)) * config.dim**-0.5
        self.proj_out = nn.Linear(config.dim, config.patch_size**2 * (config.out_channels or config.in_channels))

    @property
    def dtype(self) -> mx.Dtype:
        """What it computes in."""
        return self.scale_shift_table.dtype

    def encode_text(self, encoder_hidden_states: mx.array, attention_mask: mx.array | None = None) -> list[TextKV]:
        """What each block reads of a text, in every step.

        Args:
            encoder_hidden_states: the connector's output, (B, N, caption_channels), of any dtype.
            attention_mask: (B, N) bool, True where a position is to be seen; all of them by default.
        """
        text = self.project_text(encoder_hidden_states)
        bias = text_bias(text.dtype, attention_mask)
        return [block.attn2.read(text, bias) for block in self.transformer_blocks]

    def project_text(self, encoder_hidden_states: mx.array) -> mx.array:
        """What the keys and values of all blocks are made of, (B, N, dim)."""
        return self.caption_norm(self.caption_projection(encoder_hidden_states.astype(self.dtype)))

    def tables(self) -> mx.array:
        """What the blocks add to the modulation, (num_layers, 6, dim)."""
        return mx.stack([block.scale_shift_table for block in self.transformer_blocks])

    def modulations(
        self, tables: mx.array, modulation: mx.array, embedded: mx.array
    ) -> tuple[list[mx.array], mx.array]:
        """What timesteps do in each block and in the output layer; 1 is added to the scales.

        Args:
            tables: of `tables`.
            modulation, embedded: of `time_embed`, (S, 6 dim) and (S, dim).

        Returns:
            for each block shift, scale and gate of the self-attention, then of the feed-forward network, (S, 6, dim);
            and shift and scale of the output layer, (S, 2, dim).
        """
        one = mx.array([0, 1, 0, 0, 1, 0], modulation.dtype)[:, None]
        blocks = tables[:, None] + modulation.reshape(len(modulation), 6, -1) + one
        return list(blocks), self.scale_shift_table + embedded[:, None] + one[:2]

    def __call__(self, latents: mx.array, timestep: mx.array, texts: Sequence[BlockText]) -> mx.array:
        """The velocity: (B, h, w, out_channels).

        Args:
            latents: (B, h, w, in_channels), of any dtype; any h and w that are multiples of patch_size.
            timestep: (B,), 0 to 1000.
            texts: of `encode_text`, for the same B.
        """
        x = self.patch_embed(latents.astype(self.dtype))
        size = (latents.shape[1] // self.config.patch_size, latents.shape[2] // self.config.patch_size)
        modulations, output = self.modulations(self.tables(), *self.time_embed(timestep, x.dtype))
        for block, modulation, text in zip(self.transformer_blocks, modulations, texts, strict=True):
            x = block(x, modulation, [text], size)
        return self.velocity(x, output, size)

    def velocity(self, x: mx.array, modulation: mx.array, size: tuple[int, int]) -> mx.array:
        """The output layer: from tokens (B, T, dim) of `size` = (rows, columns) to (B, h, w, out_channels).

        Args:
            modulation: of `modulations`, (B, 2, dim), or (1, 2, dim) where all rows have one timestep.
        """
        shift, scale = mx.split(modulation, 2, axis=1)
        return self.unpatch(self.proj_out(modulated_norm(x, scale, shift, OUTPUT_NORM_EPS)), size)

    def unpatch(self, x: mx.array, size: tuple[int, int]) -> mx.array:
        """From patches (B, rows * columns, p p C), `size` = (rows, columns), to (B, rows p, columns p, C)."""
        (rows, columns), p = size, self.config.patch_size
        x = x.reshape(-1, rows, columns, p, p, x.shape[-1] // p**2).swapaxes(2, 3)
        return x.reshape(-1, rows * p, columns * p, x.shape[-1])


def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Upstream's names are ours; the convolutions change their layout."""
    out = {}
    for name, w in weights.items():
        if name == "patch_embed.proj.weight":
            w = conv_weight(w).reshape(w.shape[0], -1)  # (O, C, p, p) -> (O, p p C)
        elif name.endswith(("conv_inverted.weight", "conv_point.weight")):
            w = pointwise_weight(w)
        elif name.endswith("conv_depth.weight"):
            w = conv_weight(w)
        out[name] = w
    return out


def to_upstream(weights: dict[str, mx.array], patch_size: int) -> dict[str, mx.array]:
    """`sanitize` undone."""
    out = {}
    for name, w in weights.items():
        if name == "patch_embed.proj.weight":
            w = channels_first(w.reshape(w.shape[0], patch_size, patch_size, -1))  # (O, p p C) -> (O, C, p, p)
        elif name.endswith(("conv_inverted.weight", "conv_point.weight")):
            w = w[..., None, None]
        elif name.endswith("conv_depth.weight"):
            w = channels_first(w)
        out[name] = w
    return out
