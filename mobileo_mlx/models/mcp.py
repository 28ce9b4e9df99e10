"""The Mobile Conditioning Projector (Mobile-O, arXiv 2602.20161, section 3.1): from hidden states to the DiT's text.

A learned, temperature-scaled mixture of the language model's last hidden states, then two refinements by
depthwise-separable convolution and channel attention. There are no query tokens and no attention between positions: a
text has as many positions as the prompt. The convolution sees neighbours and the channel attention the mean of all
positions: where rows are padded, only a mask keeps the result what it is for each row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, Count, CountOrNone, Kernel, Width
from ..ops.conv import channels_first, conv_weight, pointwise_weight

# The original's. 1e-6, which SANA and Qwen2 have, changes the result so little that a loose tolerance would pass it.
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class MCPConfig(Config):
    """Dimensions; all but the number of layers are read from the shapes of a checkpoint's tensors."""

    hidden_size: Width  # width of the language model
    hidden_dim: Width = 512  # width of the refinements
    output_dim: Width = 2304  # the DiT's caption_channels
    num_layers: Count = 4  # hidden states that are mixed; upstream's vlm_num_layers
    num_refinement_blocks: CountOrNone = 2
    kernel_size: Kernel = 3  # positions that a convolution sees


class SeparableConv1d(nn.Module):
    """Depthwise convolution over the positions, 1x1 convolution, norm, hard swish: (B, N, dim) to (B, N, dim)."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
        self.pointwise = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)

    def __call__(self, x: mx.array) -> mx.array:
        y = self._shifted(x) if self.training else self.depthwise(x)
        return nn.hardswish(self.norm(self.pointwise(y)))

    def _shifted(self, x: mx.array) -> mx.array:
        """The depthwise convolution as a sum of shifted positions: with groups MLX has no fast gradient (0.32)."""
        weight, half = self.depthwise.weight, self.depthwise.padding
        padded = mx.pad(x, [(0, 0), (half, half), (0, 0)])
        return sum(
            (padded[:, i : i + x.shape[1]] * weight[:, i, 0] for i in range(1, weight.shape[1])),
            start=padded[:, : x.shape[1]] * weight[:, 0, 0],
        )


class ChannelAttention(nn.Module):
    """Each channel times a gate in [0, 1], computed from the mean over the positions (squeeze-and-excitation).

    x is (B, N, dim); the mask (B, N, 1), 1 where a position counts and 0 where it is padded, or None.
    """

    def __init__(self, dim: int):
        super().__init__()
        inner = max(dim // 4, 8)
        self.fc = [nn.Linear(dim, inner, bias=False), nn.Hardswish(), nn.Linear(inner, dim, bias=False)]

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        # (B, 1, C), over the positions, in float32: Metal adds half precision up in half precision.
        wide = x.astype(mx.float32)
        if mask is None:
            mean = wide.mean(axis=1, keepdims=True)
        else:
            mean = (wide * mask).sum(axis=1, keepdims=True) / mask.astype(mx.float32).sum(axis=1, keepdims=True)
        gate = mean.astype(x.dtype)
        for layer in self.fc:
            gate = layer(gate)
        return x * (mx.clip(gate + 3, 0, 6) / 6)


class SequenceRefiner(nn.Module):
    """norm(x + channel attention(convolution(x))), (B, N, dim) to (B, N, dim); mask as in `ChannelAttention`."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.conv = SeparableConv1d(dim, kernel_size)
        self.channel_attn = ChannelAttention(dim)
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)

    @property
    def halo(self) -> int:
        """How many positions it sees to each side."""
        return self.conv.depthwise.weight.shape[1] // 2

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        # Padded positions are zero for the convolution, as its own padding beyond the end of a row is.
        y = self.conv(x if mask is None else x * mask)
        return self.norm(x + self.channel_attn(y, mask))


class MobileConditioningProjector(nn.Module):
    """Hidden states of the language model to what the DiT's cross-attentions read; see the top of the file.

    The parameters are `layer_weights` (num_layers,), whose softmax at `temperature` mixes the hidden states, and the
    layers, in the order of `__call__`.
    """

    def __init__(self, config: MCPConfig):
        super().__init__()
        self.layer_weights = mx.ones((config.num_layers,))
        self.temperature = mx.array(2.0)
        self.input_compress = [
            nn.Linear(config.hidden_size, config.hidden_dim),
            nn.LayerNorm(config.hidden_dim, LAYER_NORM_EPS),
            nn.Hardswish(),
        ]
        self.sequence_refiners = [
            SequenceRefiner(config.hidden_dim, config.kernel_size) for _ in range(config.num_refinement_blocks)
        ]
        self.output_proj = [
            nn.Linear(config.hidden_dim, config.output_dim),
            nn.LayerNorm(config.output_dim, LAYER_NORM_EPS),
        ]
        # A buffer of the checkpoint, set by annealing and never by a gradient.
        self.freeze(keys=["temperature"], recurse=False)

    @property
    def halo(self) -> int:
        """How many positions at each end of a sequence the zeros beyond it can reach, through the convolutions.

        Where all hidden states of a row are equal, as the zeros of the unconditional text are, so is the result, but
        for these positions: the rest of the network treats every position alike.
        """
        return sum(refiner.halo for refiner in self.sequence_refiners)

    def fusion_weights(self) -> mx.array:
        """softmax(layer_weights / temperature), (num_layers,) float32."""
        logits = self.layer_weights.astype(mx.float32) / self.temperature.astype(mx.float32)
        return mx.softmax(logits, axis=-1)

    def __call__(self, hidden_states: Sequence[mx.array], attention_mask: mx.array | None = None) -> mx.array:
        """The DiT's text states, (B, N, output_dim).

        Args:
            hidden_states: the last `num_layers` hidden states, oldest first, each (B, N, hidden_size), of any dtype.
            attention_mask: (B, N) bool, False where a row has ended. The original has none, and there padding
                changes the result.
        """
        weights = self.fusion_weights()
        stacked = mx.stack(list(hidden_states), axis=-1).astype(mx.float32)  # (B, N, hidden_size, num_layers)
        x = (stacked @ weights).astype(self.layer_weights.dtype)
        mask = None if attention_mask is None else attention_mask[..., None].astype(x.dtype)
        for layer in self.input_compress:
            x = layer(x)
        for refiner in self.sequence_refiners:
            x = refiner(x, mask)
        for layer in self.output_proj:
            x = layer(x)
        return x


def annealed_temperature(epoch: int, epochs: int, minimum: float = 0.5, start: float = 2.0) -> float:
    """The fusion temperature at `epoch` of `epochs`: a cosine from `start` to `minimum` (section 3.2)."""
    return minimum + (start - minimum) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Upstream's names are ours; the convolutions change their layout."""
    out = {}
    for name, w in weights.items():
        if name.endswith("conv.depthwise.weight"):
            w = conv_weight(w)  # (C, 1, k) -> (C, k, 1)
        elif name.endswith("conv.pointwise.weight"):
            w = pointwise_weight(w)
        out[name] = w
    return out


def to_upstream(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`sanitize` undone."""
    out = {}
    for name, w in weights.items():
        if name.endswith("conv.depthwise.weight"):
            w = channels_first(w)  # (C, k, 1) -> (C, 1, k)
        elif name.endswith("conv.pointwise.weight"):
            w = w[..., None]
        out[name] = w
    return out


def config_from_shapes(shapes: dict[str, tuple[int, ...]], num_layers: int) -> MCPConfig:
    """The widths, which upstream fixes in its source, from the tensors' shapes."""
    hidden_dim, hidden_size = shapes["input_compress.0.weight"]
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("sequence_refiners.")}
    values = {
        "hidden_size": hidden_size,
        "hidden_dim": hidden_dim,
        "output_dim": shapes["output_proj.0.weight"][0],
        "num_layers": num_layers,
        "num_refinement_blocks": len(blocks),
        "kernel_size": shapes["sequence_refiners.0.conv.depthwise.weight"][-1] if blocks else 3,
    }
    return MCPConfig.from_dict(values, "the configuration that the tensors of diffusion_connector tell")
