"""Mask2Former (arXiv 2112.01527): queries that each become an object's class and its mask.

A backbone and a pixel decoder make maps of an image. Each of 100 learned queries then looks, layer by layer, only at
the pixels that its mask of the layer before holds (masked attention), and gives a new mask and a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from ...config import Config, Count, Width
from .deformable_attention import GROUPS, LEVELS, PixelDecoder, sine_positions
from .sampling import resize
from .swin import Swin, SwinConfig


@dataclass(frozen=True)
class Mask2FormerConfig(Config):
    """The shape of the network; the defaults are that of GenEval's detector, Swin-S trained on COCO's instances."""

    backbone: SwinConfig = field(default_factory=SwinConfig)
    dim: Width = 256  # channels of the pixel decoder's maps, and of the queries
    mask_dim: Width = 256
    heads: Count = 8
    encoder_layers: Count = 6
    encoder_hidden: Width = 1024
    decoder_layers: Count = 9
    decoder_hidden: Width = 2048
    queries: Count = 100
    classes: Count = 80  # "nothing" is one more

    def problem(self) -> str:
        if self.dim % GROUPS or self.dim % self.heads or self.dim % 4:
            return f"has dim {self.dim}, which is no multiple of {GROUPS} and of its {self.heads} heads"
        if not len(self.backbone.depths) == len(self.backbone.num_heads) == LEVELS + 1:
            return f"has a backbone of other than {LEVELS + 1} stages"
        return ""


@dataclass(frozen=True)
class Outputs:
    """All that the network finds on its way; the last of `class_logits` and `mask_logits` are its answer."""

    features: list[mx.array]  # of the backbone: (B, H, W, C), the largest first
    maps: list[mx.array]  # of the pixel decoder: (B, H, W, dim), the smallest first
    mask_features: mx.array  # (B, H / 4, W / 4, mask_dim)
    class_logits: list[mx.array]  # (B, queries, classes + 1) before the first layer and after each
    mask_logits: list[mx.array]  # (B, queries, H / 4, W / 4), in the same order


class Mask2Former(nn.Module):
    """The whole network."""

    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        config.check()
        self.config = config
        self.backbone = Swin(config.backbone)
        self.pixel_decoder = PixelDecoder(
            config.backbone.widths,
            config.dim,
            config.mask_dim,
            config.heads,
            config.encoder_hidden,
            config.encoder_layers,
        )
        self.decoder = QueryDecoder(config)

    def __call__(self, pixel_values: mx.array) -> tuple[mx.array, mx.array]:
        """Normalised pixels (B, H, W, 3) to logits (B, queries, classes + 1) and (B, queries, H / 4, W / 4)."""
        outputs = self.outputs(pixel_values)
        return outputs.class_logits[-1], outputs.mask_logits[-1]

    def outputs(self, pixel_values: mx.array) -> Outputs:
        """The same with everything in between."""
        features = self.backbone(pixel_values)
        mask_features, maps = self.pixel_decoder(features)
        classes, masks = self.decoder(maps, mask_features)
        return Outputs(features, maps, mask_features, classes, masks)


class QueryDecoder(nn.Module):
    """From learned queries to classes and masks."""

    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        dim = config.dim
        self.query_feat = nn.Embedding(config.queries, dim)
        self.query_embed = nn.Embedding(config.queries, dim)
        self.level_embed = nn.Embedding(LEVELS, dim)
        self.layers = [DecoderLayer(dim, config.heads, config.decoder_hidden) for _ in range(config.decoder_layers)]
        self.norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, config.classes + 1)
        self.mask_embed = [nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, config.mask_dim)]

    def __call__(self, maps: list[mx.array], mask_features: mx.array) -> tuple[list[mx.array], list[mx.array]]:
        """Class logits and mask logits, before the first layer and after each; shapes as in `Outputs`."""
        batch, dim = maps[0].shape[0], maps[0].shape[-1]
        sizes = [x.shape[1:3] for x in maps]
        values = [x.reshape(batch, -1, dim) + self.level_embed.weight[level] for level, x in enumerate(maps)]
        keys = [x + sine_positions(size, dim).reshape(-1, dim) for x, size in zip(values, sizes, strict=True)]
        x = mx.broadcast_to(self.query_feat.weight, (batch, *self.query_feat.weight.shape))
        classes, masks = [], []
        for index in range(len(self.layers) + 1):
            states = self.norm(x)
            classes.append(self.class_embed(states))
            masks.append(self._masks(states, mask_features))
            if index < len(self.layers):
                level = index % LEVELS
                seen = attention_mask(masks[-1], sizes[level])
                x = self.layers[index](x, self.query_embed.weight, keys[level], values[level], seen)
        return classes, masks

    def _masks(self, states: mx.array, mask_features: mx.array) -> mx.array:
        first, second, last = self.mask_embed
        embeddings = last(nn.relu(second(nn.relu(first(states)))))
        batch, rows, columns, dim = mask_features.shape
        logits = embeddings @ mask_features.reshape(batch, -1, dim).swapaxes(1, 2)
        return logits.reshape(batch, -1, rows, columns)


class DecoderLayer(nn.Module):
    """Masked attention to a map, attention among the queries, and a feed-forward, each followed by its norm."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.cross_attention = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm3 = nn.LayerNorm(dim)

    def __call__(self, x: mx.array, positions: mx.array, keys: mx.array, values: mx.array, seen: mx.array) -> mx.array:
        x = self.norm1(x + self.cross_attention(x + positions, keys, values, seen))
        placed = x + positions
        x = self.norm2(x + self.self_attention(placed, placed, x))
        return self.norm3(x + self.fc2(nn.relu(self.fc1(x))))


class Attention(nn.Module):
    """Attention with several heads."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self._heads = heads

    def __call__(self, queries: mx.array, keys: mx.array, values: mx.array, seen: mx.array | None = None) -> mx.array:
        """(B, T, dim), (B, S, dim) and (B, S, dim) to (B, T, dim); `seen`: (B, 1, T, S), True where a key counts."""
        projected = (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        q, k, v = (x.reshape(*x.shape[:2], self._heads, -1).swapaxes(1, 2) for x in projected)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=seen)
        return self.out_proj(y.swapaxes(1, 2).reshape(queries.shape))


def attention_mask(mask_logits: mx.array, size: tuple[int, ...]) -> mx.array:
    """Which pixels of a map a query looks at: those of its mask, or all where its mask holds none.

    Args:
        mask_logits: (B, queries, H, W).
        size: rows and columns of the map.

    Returns:
        (B, 1, queries, rows * columns) bool.
    """
    smaller = resize(mask_logits.transpose(0, 2, 3, 1), size).transpose(0, 3, 1, 2)
    inside = mx.sigmoid(smaller).reshape(*mask_logits.shape[:2], -1) >= 0.5
    return (inside | ~inside.any(axis=-1, keepdims=True))[:, None]
