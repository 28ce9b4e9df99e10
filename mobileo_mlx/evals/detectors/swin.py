"""Swin Transformer (arXiv 2103.14030) as a backbone: maps of features at 1/4, 1/8, 1/16 and 1/32 of the image.

Attention stays inside of windows of `window_size` tokens a side; every second block shifts the windows by half their
size, so that neighbours meet. As a backbone, unlike as a classifier, windows keep their size and their shift however
small the map is: it is padded with zeros up to whole windows, and what is padded takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ...config import Config, Count, Ratio, Width

_OUTSIDE = -100.0  # added to the scores between tokens that only the cyclic shift brought together


@dataclass(frozen=True)
class SwinConfig(Config):
    """The shape of the backbone; the defaults are Swin-S."""

    embed_dim: Width = 96  # channels of the first stage; each further stage has twice as many
    depths: tuple[Count, ...] = (2, 2, 18, 2)  # blocks a stage
    num_heads: tuple[Count, ...] = (3, 6, 12, 24)
    window_size: Count = 7
    patch_size: Count = 4
    mlp_ratio: Ratio = 4.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


class Swin(nn.Module):
    """The backbone."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        last = len(config.depths) - 1
        self.stages = [Stage(config, stage, downsample=stage < last) for stage in range(last + 1)]
        self.norms = [nn.LayerNorm(width) for width in config.widths]

    def __call__(self, pixel_values: mx.array) -> list[mx.array]:
        """(B, H, W, 3) to a map (B, H / 4, W / 4, C) and, for each further stage, one of half the size.

        Sizes that are no multiples are rounded up, with zeros at the bottom and on the right.
        """
        x = self.patch_embed(pixel_values)
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x, before = stage(x)
            maps.append(norm(before))
        return maps


class PatchEmbed(nn.Module):
    """Patches of pixels to tokens."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.projection = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim)
        self._size = config.patch_size

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.projection(padded(x, self._size)))


class Stage(nn.Module):
    """Blocks on maps of one size, and the merging of patches that makes the next one's."""

    def __init__(self, config: SwinConfig, stage: int, *, downsample: bool):
        super().__init__()
        width, heads = config.widths[stage], config.num_heads[stage]
        self.blocks = [
            Block(width, heads, config.window_size, config.mlp_ratio, shifted=bool(index % 2))
            for index in range(config.depths[stage])
        ]
        if downsample:
            self.downsample = PatchMerging(width)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """What goes to the next stage, and what the blocks gave before it was merged."""
        for block in self.blocks:
            x = block(x)
        return (self.downsample(x) if "downsample" in self else x), x


class PatchMerging(nn.Module):
    """Each 2x2 tokens to one of twice the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = padded(x, 2)
        # The paper's code goes down the columns: top left, bottom left, top right, bottom right.
        quarters = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(mx.concatenate(quarters, axis=-1)))


class Block(nn.Module):
    """Attention in windows, and a feed-forward."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float, *, shifted: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)
        self._window, self._shift = window, window // 2 if shifted else 0

    def __call__(self, x: mx.array) -> mx.array:
        rows, columns = x.shape[1:3]
        inside = padded(self.norm1(x), self._window)  # zeros after the norm, as the paper's code has it
        height, width = inside.shape[1:3]
        if self._shift:
            inside = rolled(inside, -self._shift)
            mask = shift_mask(height, width, self._window, self._shift)
        else:
            mask = None
        windows = self.attention(to_windows(inside, self._window), mask)
        inside = from_windows(windows, self._window, height, width)
        if self._shift:
            inside = rolled(inside, self._shift)
        x = x + inside[:, :rows, :columns]
        return x + self.fc2(nn.gelu(self.fc1(self.norm2(x))))


class WindowAttention(nn.Module):
    """Self-attention in each window, with a bias for each head and each offset between two tokens."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = mx.zeros(((2 * window - 1) ** 2, heads))
        self._heads, self._window = heads, window

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """Tokens of windows (B * windows, window^2, C); `mask` (windows, window^2, window^2) is added to the scores."""
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self._heads, -1).transpose(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[offsets(self._window)].transpose(2, 0, 1)[None]
        if mask is not None:  # the windows of an image follow each other
            bias = mx.tile(bias + mask[:, None], (count // mask.shape[0], 1, 1, 1))
        scale = (width // self._heads) ** -0.5
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)
        return self.proj(y.transpose(0, 2, 1, 3).reshape(count, tokens, width))


def padded(x: mx.array, multiple: int) -> mx.array:
    """Zeros at the bottom and on the right of (B, H, W, C), up to multiples."""
    below, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return mx.pad(x, [(0, 0), (0, below), (0, right), (0, 0)]) if below or right else x


def rolled(x: mx.array, shift: int) -> mx.array:
    """(B, H, W, C) moved down and to the right; what leaves comes in again on the other side."""
    return mx.roll(mx.roll(x, shift, 1), shift, 2)


def to_windows(x: mx.array, window: int) -> mx.array:
    """(B, H, W, C) to (B * windows, window^2, C), row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(-1, window * window, channels)


def from_windows(x: mx.array, window: int, height: int, width: int) -> mx.array:
    """`to_windows` undone."""
    channels = x.shape[-1]
    x = x.reshape(-1, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(-1, height, width, channels)


def offsets(window: int) -> mx.array:
    """(window^2, window^2): the row of the bias table for each pair of tokens, by how far apart they are."""
    row, column = (axis.reshape(-1) for axis in mx.meshgrid(mx.arange(window), mx.arange(window), indexing="ij"))
    down, right = (axis[:, None] - axis[None] + window - 1 for axis in (row, column))
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, shift: int) -> mx.array:
    """(windows, window^2, window^2): 0 between tokens that were neighbours before the cyclic shift, else -100."""

    def region(size: int) -> mx.array:
        position = mx.arange(size)
        return (position >= size - window).astype(mx.int32) + (position >= size - shift)

    regions = region(height)[:, None] * 3 + region(width)[None]
    inside = to_windows(regions[None, :, :, None], window)[..., 0]
    return mx.where(inside[:, :, None] == inside[:, None], 0.0, _OUTSIDE)
