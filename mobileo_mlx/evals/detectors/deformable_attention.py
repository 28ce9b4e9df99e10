"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) and the pixel decoder that is made of it.

A token does not look at all others: for each head and each of the maps it looks at four places near its own, which it
chooses itself, between the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .sampling import resize, sample

GROUPS = 32  # of every group norm
LEVELS = 3  # maps that attention looks at
POINTS = 4  # places a head looks at in each

Size = tuple[int, ...]  # rows and columns
Sizes = Sequence[Size]  # of the maps, the smallest first


class DeformableAttention(nn.Module):
    """Attention to places, equation 3 of the paper."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.sampling_offsets = nn.Linear(dim, heads * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(dim, heads * LEVELS * POINTS)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._heads = heads

    def __call__(self, x: mx.array, positions: mx.array, references: mx.array, sizes: Sizes) -> mx.array:
        """Attention of the tokens of all maps to themselves.

        Args:
            x: (B, N, C), the tokens of one map after the other.
            positions: (1, N, C), added where it is chosen where to look.
            references: (N, 2), a token's place (x, y), from 0 to 1 in both directions.
            sizes: of the maps.
        """
        batch, tokens, dim = x.shape
        heads, width = self._heads, dim // self._heads
        queries = x + positions
        shape = (batch, tokens, heads, LEVELS, POINTS)
        offsets = self.sampling_offsets(queries).reshape(*shape, 2)
        weights = mx.softmax(self.attention_weights(queries).reshape(*shape[:3], -1), axis=-1).reshape(shape)
        values = self.value_proj(x).reshape(batch, tokens, heads, width).swapaxes(1, 2)
        total = mx.zeros((1, 1, 1))
        start = 0
        for level, (rows, columns) in enumerate(sizes):
            maps = values[:, :, start : start + rows * columns].reshape(batch * heads, rows, columns, width)
            start += rows * columns
            # (B, N, heads, points) each, in pixels of this map; 0 is the centre of the first
            places = (
                references[:, None, None, axis] * size + offsets[..., level, :, axis] - 0.5
                for axis, size in ((0, columns), (1, rows))
            )
            x_places, y_places = (place.swapaxes(1, 2).reshape(batch * heads, -1) for place in places)
            found = sample(maps, x_places, y_places).reshape(batch * heads, tokens, POINTS, width)
            shares = weights[:, :, :, level].swapaxes(1, 2).reshape(batch * heads, tokens, POINTS, 1)
            total = total + (found * shares).sum(axis=2)
        mixed = total.reshape(batch, heads, tokens, width).swapaxes(1, 2).reshape(batch, tokens, dim)
        return self.output_proj(mixed)


class DeformableLayer(nn.Module):
    """Attention and a feed-forward, each followed by its norm."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.attention = DeformableAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim)

    def __call__(self, x: mx.array, positions: mx.array, references: mx.array, sizes: Sizes) -> mx.array:
        x = self.norm1(x + self.attention(x, positions, references, sizes))
        return self.norm2(x + self.fc2(nn.relu(self.fc1(x))))


class Projection(nn.Module):
    """A convolution and a group norm."""

    def __init__(self, inputs: int, dim: int, kernel: int, *, bias: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, dim, kernel, padding=kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(GROUPS, dim, pytorch_compatible=True)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.conv(x))


class PixelDecoder(nn.Module):
    """The maps of a backbone to maps that know of each other, and features for each 4x4 pixels.

    Args:
        widths: channels of the backbone's maps, the largest map first.
        dim: channels inside.
        mask_dim: channels of the features.
        heads, hidden, layers: of the encoder.
    """

    def __init__(self, widths: Sequence[int], dim: int, mask_dim: int, heads: int, hidden: int, layers: int):
        super().__init__()
        self.input_projections = [Projection(width, dim, 1, bias=True) for width in reversed(widths[-LEVELS:])]
        self.level_embed = mx.zeros((LEVELS, dim))
        self.layers = [DeformableLayer(dim, heads, hidden) for _ in range(layers)]
        self.lateral = Projection(widths[0], dim, 1, bias=False)
        self.output = Projection(dim, dim, 3, bias=False)
        self.mask_projection = nn.Conv2d(dim, mask_dim, 1)

    def __call__(self, features: Sequence[mx.array]) -> tuple[mx.array, list[mx.array]]:
        """Maps (B, H, W, C) at 1/4, 1/8, 1/16 and 1/32 to the features at 1/4 and three maps, the smallest first."""
        maps = [project(x) for project, x in zip(self.input_projections, reversed(features[-LEVELS:]), strict=True)]
        sizes = [x.shape[1:3] for x in maps]
        batch, dim = maps[0].shape[0], maps[0].shape[-1]
        positions = [
            sine_positions(size, dim).reshape(1, -1, dim) + level
            for size, level in zip(sizes, self.level_embed, strict=True)
        ]
        x = mx.concatenate([part.reshape(batch, -1, dim) for part in maps], axis=1)
        references = mx.concatenate([centres(size) for size in sizes])
        for layer in self.layers:
            x = layer(x, mx.concatenate(positions, axis=1), references, sizes)
        ends = [sum(rows * columns for rows, columns in sizes[: level + 1]) for level in range(LEVELS)]
        parts = mx.split(x, ends[:-1], axis=1)
        maps = [part.reshape(batch, *size, dim) for part, size in zip(parts, sizes, strict=True)]
        lateral = self.lateral(features[0])
        merged = nn.relu(self.output(lateral + resize(maps[-1], lateral.shape[1:3])))
        return self.mask_projection(merged), maps


def centres(size: Size) -> mx.array:
    """(rows * columns, 2): the places (x, y) of a map's pixels, from 0 to 1 in both directions."""
    rows, columns = size
    y, x = mx.meshgrid((mx.arange(rows) + 0.5) / rows, (mx.arange(columns) + 0.5) / columns, indexing="ij")
    return mx.stack([x.reshape(-1), y.reshape(-1)], axis=-1)


def sine_positions(size: Size, dim: int) -> mx.array:
    """(rows, columns, dim): sines and cosines of where a pixel is, half of the channels for y and half for x.

    Rows and columns are counted from 1 and scaled so that the last of them is at 2 pi (DETR, arXiv 2005.12872).
    """
    rows, columns = size
    frequencies = 10000.0 ** (-2 * (mx.arange(dim // 2) // 2) / (dim // 2))

    def waves(length: int) -> mx.array:
        angles = (mx.arange(1, length + 1) * (2 * math.pi / (length + 1e-6)))[:, None] * frequencies
        return mx.stack([mx.sin(angles[:, 0::2]), mx.cos(angles[:, 1::2])], axis=-1).reshape(length, -1)

    y, x = waves(rows)[:, None], waves(columns)[None]
    shape = (rows, columns, dim // 2)
    return mx.concatenate([mx.broadcast_to(y, shape), mx.broadcast_to(x, shape)], axis=-1)
