"""SANA (arXiv 2410.10629): a diffusion transformer with linear attention and a convolutional feed-forward.

The text enters through cross-attention alone, and its keys and values depend on neither the latents nor the
timestep: `encode_text` computes them once an image, and every step reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import Config
from ..ops.conv import conv_weight, pointwise_weight
from .layers import GLUMBConv, relu_linear_attention

TIMESTEP_CHANNELS = 256
CAPTION_NORM_EPS = 1e-5
OUTPUT_NORM_EPS = 1e-6  # fixed in diffusers, whatever `norm_eps` says of the blocks
MASKED = -10000.0  # added to the scores of masked text, as diffusers does


@dataclass(frozen=True)
class SanaConfig(Config):
    """Keys as in diffusers' SanaTransformer2DModel; `attention_eps` is ours."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    num_cross_attention_heads: int
    cross_attention_head_dim: int
    caption_channels: int
    in_channels: int = 32
    out_channels: int | None = 32
    mlp_ratio: float = 2.5
    patch_size: int = 1
    sample_size: int = 16  # side of the default latents
    norm_eps: float = 1e-6
    attention_bias: bool = False
    interpolation_scale: float | None = None  # sine-cosine positions; the published checkpoints have none
    attention_eps: float = 1e-15  # of the linear attention's normaliser

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class TextContext:
    """What the cross-attentions read: for each block keys and values, (B, heads, N, head_dim)."""

    keys: tuple[mx.array, ...]
    values: tuple[mx.array, ...]
    bias: mx.array | None  # (B, 1, 1, N), added to the scores


class TimestepEmbedder(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(x)))


class TimestepEmbedding(nn.Module):
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
    """One modulation vector for all blocks (PixArt-alpha, arXiv 2310.00426, section 2.3)."""

    def __init__(self, dim: int):
        super().__init__()
        self.emb = TimestepEmbedding(dim)
        self.linear = nn.Linear(dim, 6 * dim)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        embedded = self.emb(timestep, dtype)
        return self.linear(nn.silu(embedded)), embedded


class CaptionProjection(nn.Module):
    def __init__(self, caption_channels: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(nn.gelu_approx(self.linear_1(x)))


class PatchEmbed(nn.Module):
    """A linear layer over each patch and, where the configuration asks for them, positions."""

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
    """Self-attention with ReLU kernels."""

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
        return self.to_out[0](merge_heads(relu_linear_attention(q, k, v, self.eps)))


class CrossAttention(nn.Module):
    def __init__(self, config: SanaConfig):
        super().__init__()
        dim = config.dim
        self.heads, self.head_dim = config.num_cross_attention_heads, config.cross_attention_head_dim
        inner = self.heads * self.head_dim
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = [nn.Linear(inner, dim)]

    def keys_values(self, text: mx.array) -> tuple[mx.array, mx.array]:
        return split_heads(self.to_k(text), self.head_dim), split_heads(self.to_v(text), self.head_dim)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, bias: mx.array | None) -> mx.array:
        q = split_heads(self.to_q(x), self.head_dim)
        y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=self.head_dim**-0.5, mask=bias)
        return self.to_out[0](merge_heads(y))


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
    return x.swapaxes(1, 2).flatten(2)  # (B, T, heads * head_dim)


class TransformerBlock(nn.Module):
    def __init__(self, config: SanaConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn1 = LinearAttention(config)
        self.attn2 = CrossAttention(config)
        self.ff = GLUMBConv(config.dim, config.mlp_ratio)
        self.scale_shift_table = mx.random.normal((6, config.dim)) * config.dim**-0.5

    def __call__(
        self,
        x: mx.array,
        modulation: mx.array,
        keys: mx.array,
        values: mx.array,
        bias: mx.array | None,
        size: tuple[int, int],
    ) -> mx.array:
        batch, length, dim = x.shape
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = mx.split(
            self.scale_shift_table + modulation, 6, axis=1
        )  # each (B, 1, dim)
        x = x + gate_1 * self.attn1(modulate(x, shift_1, scale_1, self.eps))
        x = x + self.attn2(x, keys, values, bias)  # reads the stream without a norm
        y = modulate(x, shift_2, scale_2, self.eps).reshape(batch, *size, dim)
        return x + gate_2 * self.ff(y).reshape(batch, length, dim)


def modulate(x: mx.array, shift: mx.array, scale: mx.array, eps: float) -> mx.array:
    return mx.fast.layer_norm(x, None, None, eps) * (1 + scale) + shift


class SanaTransformer(nn.Module):
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

    def encode_text(self, encoder_hidden_states: mx.array, attention_mask: mx.array | None = None) -> TextContext:
        """What a prompt contributes to every step.

        Args:
            encoder_hidden_states: the connector's output, (B, N, caption_channels).
            attention_mask: (B, N) bool, True where a position is to be seen; all of them by default.
        """
        text = self.project_text(encoder_hidden_states)
        pairs = [block.attn2.keys_values(text) for block in self.transformer_blocks]
        bias = text_bias(text.dtype, attention_mask)
        return TextContext(tuple(k for k, _ in pairs), tuple(v for _, v in pairs), bias)

    def project_text(self, encoder_hidden_states: mx.array) -> mx.array:
        """What the keys and values of all blocks are made of, (B, N, dim)."""
        return self.caption_norm(self.caption_projection(encoder_hidden_states))

    def __call__(self, latents: mx.array, timestep: mx.array, context: TextContext) -> mx.array:
        """The velocity, noise - clean latents: (B, h, w, out_channels).

        Args:
            latents: (B, h, w, in_channels); any h and w that are multiples of patch_size.
            timestep: (B,), 0 to 1000.
            context: of `encode_text`, for the same B.
        """
        batch, height, width, _ = latents.shape
        p = self.config.patch_size
        size = (height // p, width // p)
        x = self.patch_embed(latents)
        modulation, embedded = self.time_embed(timestep, x.dtype)
        modulation = modulation.reshape(batch, 6, -1)
        for block, keys, values in zip(self.transformer_blocks, context.keys, context.values, strict=True):
            x = block(x, modulation, keys, values, context.bias, size)
        shift, scale = mx.split(self.scale_shift_table + embedded[:, None], 2, axis=1)
        return self.unpatch(self.proj_out(modulate(x, shift, scale, OUTPUT_NORM_EPS)), size)

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
