"""FastViTHD (FastVLM, arXiv 2412.13303): a convolutional tower with attention in its last two stages.

Five stages, each half the size of the one before, on a stem that makes images four times smaller: of 1024x1024 pixels
256 tokens are left, where a plain ViT has thousands, and attention sees few positions.

This is the reparameterised form of FastViT (arXiv 2303.14189), the one that checkpoints hold: each mixer is one
depthwise convolution into which the branches and the skip connection of training have been folded. Only the
feed-forward still has its BatchNorm.

Calling the network takes whole maps; `FastViTHD.encode` is the same in little memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, Count, Epsilon, Kernel, Range, Ratio, Width
from ..ops import bands
from ..ops.activations import gelu, scaled_residual
from ..ops.attention import attention
from ..ops.blocks import Chain, Residual, WholeMap, follow
from ..ops.conv import Conv2d, channels_first, conv_weight, pointwise_weight
from ..ops.cpu import repmixer
from ..ops.depthwise import DepthwiseConv2d
from ..ops.derived import derived
from .batch_norm import BatchNorm, statistics_kept
from .layers import compute_dtype

Stride = Annotated[int, Range(1, 4)]


@dataclass(frozen=True)
class FastViTHDConfig(Config):
    """The shape of the tower; the tuples have an element for each stage. Upstream fixes all of it in its source."""

    layers: tuple[Count, ...] = (2, 12, 24, 4, 2)  # blocks a stage
    embed_dims: tuple[Width, ...] = (96, 192, 384, 768, 1536)
    mlp_ratios: tuple[Ratio, ...] = (4, 4, 4, 4, 4)
    token_mixers: tuple[Literal["repmixer", "attention"], ...] = ("repmixer",) * 3 + ("attention",) * 2
    pos_embs: tuple[Kernel | None, ...] = (None, None, None, 7, 7)  # kernel of the positional convolution
    down_strides: tuple[Stride, ...] = (2, 2, 2, 2)  # of the four downsamplings; the original has 2 everywhere
    down_patch_size: Kernel = 7
    repmixer_kernel_size: Kernel = 3
    attention_head_dim: Count = 32
    cls_ratio: Ratio = 2.0  # width of the last convolution / width of the last stage
    se_channels: Width = 192  # inner width of its squeeze-and-excitation
    norm_eps: Epsilon = 1e-5  # LayerNorm and BatchNorm

    @property
    def output_dim(self) -> int:
        return int(self.embed_dims[-1] * self.cls_ratio)

    @property
    def patch_size(self) -> int:
        """Pixels a token covers in each direction."""
        size = 4  # the stem
        for stride in self.down_strides:
            size *= stride
        return size

    def problem(self) -> str:
        dims, stages = self.embed_dims, len(self.layers)
        for name in ("embed_dims", "mlp_ratios", "token_mixers", "pos_embs"):
            if not len(getattr(self, name)) == stages > 0:
                return f"has {name} of another length than layers, or of none"
        if len(self.down_strides) != stages - 1:
            return "has down_strides of another length than there are stages to go down to"
        if any(wide % narrow for narrow, wide in itertools.pairwise((*dims, self.output_dim))) or not self.output_dim:
            return "has embed_dims or a cls_ratio that is no multiple of the width before"
        if any(
            dim % self.attention_head_dim
            for dim, kind in zip(dims, self.token_mixers, strict=True)
            if kind == "attention"
        ):
            return f"has attention_head_dim = {self.attention_head_dim}, which does not divide a width with attention"
        if any(dim * ratio < 1 for dim, ratio in zip(dims, self.mlp_ratios, strict=True)):
            return "has mlp_ratios that leave no channel"
        return ""

    def blocks(self) -> dict[str, tuple[str, int]]:
        """The start of the tensors' names of each stage, with what decides on its number of blocks, and that."""
        found, position = {}, 0
        for i, count in enumerate(self.layers):
            position += (i > 0) + (self.pos_embs[i] is not None)  # what stands before the stage
            found[f"network.{position}."] = (f"layers[{i}] = {count}", count)
            position += 1
        return found


class ReparamConv(Chain):
    """A convolution (of 1x1: a linear layer) under the name that reparameterisation gives it, and perhaps GELU."""

    def __init__(self, convolution: nn.Module, *, act: bool = True):
        super().__init__()
        self.reparam_conv = convolution
        self.act = act

    def steps(self) -> Sequence[Any]:
        return (self.reparam_conv, gelu) if self.act else (self.reparam_conv,)


def _with_skip(convolution: DepthwiseConv2d) -> DepthwiseConv2d:
    """A new convolution that lets its input through, as one into which a skip connection was folded."""
    centre = convolution.weight.shape[1] // 2
    convolution.weight[:, centre, centre] += 1
    return convolution


class LargeKernelConv(Chain):
    """Depthwise convolution, several outputs a channel, and GELU."""

    def __init__(self, dim: int, kernel: int, stride: int, multiplier: int):
        super().__init__()
        self.lkb_reparam = DepthwiseConv2d(dim, kernel, stride=stride, multiplier=multiplier)

    def steps(self) -> Sequence[Any]:
        return self.lkb_reparam, gelu


class Downsample(Chain):
    """Between two stages: a large kernel with a stride, then 1x1; (B, H, W, dim_in) to (B, H / s, W / s, dim_out)."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, stride: int):
        super().__init__()
        self.proj = [
            LargeKernelConv(dim_in, kernel, stride, dim_out // dim_in),
            ReparamConv(nn.Linear(dim_out, dim_out)),
        ]

    def steps(self) -> Sequence[Any]:
        return self.proj


class ConvNorm(Chain):
    """Depthwise 7x7 without bias, then BatchNorm."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.conv = DepthwiseConv2d(dim, 7, bias=False)
        self.bn = BatchNorm(dim, eps)

    def steps(self) -> Sequence[Any]:
        if self.training:
            return self.conv, self.bn
        return (self.conv.replaced(*derived(_folded, self.conv.weight, *self._norm())),)

    def affine(self) -> tuple[mx.array, mx.array]:
        """The norm with the statistics of training is g x + s; these are g and s.

        g = weight / sqrt(variance + eps), s = bias - g mean, in float32.
        """
        return _affine(*self._norm())

    def _norm(self) -> tuple[mx.array, mx.array, mx.array, mx.array, float]:
        norm = self.bn
        return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps


def _affine(
    weight: mx.array, bias: mx.array, mean: mx.array, variance: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    gain = weight.astype(mx.float32) * mx.rsqrt(variance.astype(mx.float32) + eps)
    return gain, bias.astype(mx.float32) - gain * mean.astype(mx.float32)


def _folded(kernel: mx.array, *norm: Any) -> tuple[mx.array, mx.array]:
    """Weight and bias of a convolution that takes the norm into its own: computed in float32 and rounded once."""
    gain, shift = _affine(*norm)
    weight = kernel.astype(mx.float32) * gain[:, None, None, None]
    return weight.astype(kernel.dtype), shift.astype(kernel.dtype)


class ConvFFN(Chain):
    """The feed-forward: depthwise 7x7 with its norm, then two linear layers; `ratio` is hidden channels / channels."""

    def __init__(self, dim: int, ratio: float, eps: float):
        super().__init__()
        self.conv = ConvNorm(dim, eps)
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def steps(self) -> Sequence[Any]:
        return self.conv, self.fc1, gelu, self.fc2


def _scaled(scale: mx.array, *steps: Any) -> Residual:
    """x + scale * steps(x), the scale (dim,)."""
    return Residual(*steps, join=partial(scaled_residual, scale), widest=4)


class Attention(WholeMap):
    """Self-attention over all pixels of a map, (B, H, W, dim) to the same."""

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, -1, self.head_dim)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (B, heads, H W, head_dim)
        y = attention(q, k, v, self.head_dim**-0.5, training=self.training)
        return self.proj(y.swapaxes(1, 2).reshape(batch, height, width, dim))


class RepMixerBlock(Chain):
    """A block of the first stages, whose mixer is one depthwise convolution; (B, H, W, dim) to the same."""

    def __init__(self, dim: int, ratio: float, config: FastViTHDConfig):
        super().__init__()
        self.token_mixer = ReparamConv(_with_skip(DepthwiseConv2d(dim, config.repmixer_kernel_size)), act=False)
        self.convffn = ConvFFN(dim, ratio, config.norm_eps)
        self.layer_scale = mx.full((dim,), 1e-5)

    def steps(self) -> Sequence[Any]:
        return self.token_mixer, _scaled(self.layer_scale, self.convffn)


class AttentionBlock(Chain):
    """A block of the last stages, whose mixer is self-attention over all pixels; (B, H, W, dim) to the same."""

    def __init__(self, dim: int, ratio: float, config: FastViTHDConfig):
        super().__init__()
        self.norm = nn.LayerNorm(dim, config.norm_eps)
        self.token_mixer = Attention(dim, config.attention_head_dim)
        self.convffn = ConvFFN(dim, ratio, config.norm_eps)
        self.layer_scale_1 = mx.full((dim,), 1e-5)
        self.layer_scale_2 = mx.full((dim,), 1e-5)

    def steps(self) -> Sequence[Any]:
        return _scaled(self.layer_scale_1, self.norm, self.token_mixer), _scaled(self.layer_scale_2, self.convffn)


class SqueezeExcite(nn.Module):
    """A gate for each channel from the means of all (arXiv 1709.01507); (B, H, W, dim) to the same."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.reduce = nn.Linear(dim, inner)
        self.expand = nn.Linear(inner, dim)

    def __call__(self, x: mx.array) -> mx.array:
        # In float32: Metal adds half precision up in half precision.
        gate = x.astype(mx.float32).mean(axis=(1, 2), keepdims=True).astype(x.dtype)
        return x * mx.sigmoid(self.expand(nn.relu(self.reduce(gate))))


class ConvExpand(WholeMap):
    """The last convolution: depthwise with several outputs a channel, squeeze-and-excitation, GELU."""

    def __init__(self, dim: int, dim_out: int, inner: int):
        super().__init__()
        self.reparam_conv = DepthwiseConv2d(dim, 3, multiplier=dim_out // dim)
        self.se = SqueezeExcite(dim_out, inner)

    def __call__(self, x: mx.array) -> mx.array:
        return gelu(self.se(self.reparam_conv(x)))


class FastViTHD(nn.Module):
    """From images to tokens in row-major order: (B, H, W, 3) in [0, 1] to (B, h w, output_dim), h = H / patch_size."""

    def __init__(self, config: FastViTHDConfig):
        super().__init__()
        dims = config.embed_dims
        self.patch_embed = [
            ReparamConv(Conv2d(3, dims[0], 3, stride=2, padding=1)),
            ReparamConv(DepthwiseConv2d(dims[0], 3, stride=2)),
            ReparamConv(nn.Linear(dims[0], dims[0])),
        ]
        # One flat list, as in the checkpoint: stage, downsampling, [positional convolution,] stage, ...
        self.network: list[nn.Module | list[nn.Module]] = []
        for i, dim in enumerate(dims):
            if i > 0:
                stride = config.down_strides[i - 1]
                self.network.append(Downsample(dims[i - 1], dim, config.down_patch_size, stride))
            kernel = config.pos_embs[i]
            if kernel is not None:
                self.network.append(ReparamConv(_with_skip(DepthwiseConv2d(dim, kernel)), act=False))
            block = RepMixerBlock if config.token_mixers[i] == "repmixer" else AttentionBlock
            self.network.append([block(dim, config.mlp_ratios[i], config) for _ in range(config.layers[i])])
        self.conv_exp = ConvExpand(dims[-1], config.output_dim, config.se_channels)

    def set_dtype(self, dtype: mx.Dtype, *predicate: Any) -> None:
        """As every module's, but the statistics of BatchNorm stay in float32."""
        with statistics_kept(self):
            super().set_dtype(dtype, *predicate)

    def parts(self) -> list[list[Any]]:
        """All blocks in order: the stem, then stages and what is between them, then the last convolution."""
        return [self.patch_embed, *(p if isinstance(p, list) else [p] for p in self.network), [self.conv_exp]]

    def __call__(self, pixel_values: mx.array) -> mx.array:
        x = pixel_values.astype(self.patch_embed[0].reparam_conv.weight.dtype)
        for blocks in self.parts():
            x = follow(blocks, x)
        return x.flatten(1, 2)

    def encode(self, pixel_values: mx.array) -> mx.array:
        """What calling it gives, for inference, in little memory; pixel values of any dtype."""
        x = pixel_values.astype(self.patch_embed[0].reparam_conv.weight.dtype)
        for blocks in self.parts():
            if isinstance(blocks[0], RepMixerBlock) and repmixer.suits(blocks):
                x = repmixer.run(blocks, x)
            else:
                x = bands.run(blocks, x)
        return x.flatten(1, 2)


@dataclass(frozen=True)
class MMProjectorConfig(Config):
    """The widths of the projector: the tower's, its own, and the language model's."""

    input_dim: Width
    hidden_dim: Width
    output_dim: Width


class MMProjector(nn.Sequential):
    """From the tower's width to the language model's: Linear, GELU, Linear; (..., input_dim) to (..., output_dim).

    The input may have any dtype.
    """

    def __init__(self, config: MMProjectorConfig):
        super().__init__(
            nn.Linear(config.input_dim, config.hidden_dim),
            nn.GELU(),
            nn.Linear(config.hidden_dim, config.output_dim),
        )

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.astype(compute_dtype(self)))


_CLASSIFIER_WIDTH = 768  # of MobileCLIP's embedding
_POINTWISE = ("fc1.weight", "fc2.weight", "se.reduce.weight", "se.expand.weight")


def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convolutions and layer scales change their layout; what is never used is dropped."""
    out = {}
    for name, w in weights.items():
        if name.endswith("num_batches_tracked") or name == "head.proj":
            continue
        if ".layer_scale" in name:
            w = w.reshape(-1)  # (C, 1, 1) -> (C,)
        elif name.endswith(_POINTWISE) or (w.ndim == 4 and w.shape[2:] == (1, 1)):
            w = pointwise_weight(w)
        elif w.ndim == 4:
            w = conv_weight(w)
        out[name] = w
    return out


def to_upstream(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`sanitize` undone, up to what it drops: see `unused`."""
    out = {}
    for name, w in weights.items():
        if ".layer_scale" in name:
            w = w.reshape(-1, 1, 1)
        elif name.endswith(_POINTWISE) or (w.ndim == 2 and name.endswith("reparam_conv.weight")):
            w = w[..., None, None]
        elif w.ndim == 4:
            w = channels_first(w)
        out[name] = w
    return out


def unused(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """What upstream's checkpoint has beside the weights, as zeros: no output depends on it, and strict loaders ask."""
    counters = {
        f"{name.removesuffix('running_var')}num_batches_tracked": mx.array(0, mx.int64)
        for name in weights
        if name.endswith("running_var")
    }
    last = weights["conv_exp.reparam_conv.weight"]
    return {**counters, "head.proj": mx.zeros((last.shape[0], _CLASSIFIER_WIDTH), last.dtype)}


def sanitize_projector(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """MLX reads names that are only numbers as a list, so the sequence has a name of its own."""
    return {f"layers.{name}": w for name, w in weights.items()}


def projector_to_upstream(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`sanitize_projector` undone."""
    return {name.removeprefix("layers."): w for name, w in weights.items()}


def config_from_shapes(shapes: dict[str, tuple[int, ...]]) -> FastViTHDConfig:
    """The layers and widths, which upstream fixes in its source, from the tensors' shapes."""
    layers, dims, ratios, mixers, pos_embs = [], [], [], [], []
    pos_emb = None
    for i in sorted({int(name.split(".")[1]) for name in shapes if name.startswith("network.")}):
        if (kernel := shapes.get(f"network.{i}.reparam_conv.weight")) is not None:
            pos_emb = kernel[-1]
        elif (fc1 := shapes.get(f"network.{i}.0.convffn.fc1.weight")) is not None:
            blocks = {name.split(".")[2] for name in shapes if name.startswith(f"network.{i}.")}
            attention = f"network.{i}.0.token_mixer.qkv.weight" in shapes
            layers.append(len(blocks))
            dims.append(fc1[1])
            ratios.append(fc1[0] / fc1[1])
            mixers.append("attention" if attention else "repmixer")
            pos_embs.append(pos_emb)
            pos_emb = None
    values = {
        "layers": layers,
        "embed_dims": dims,
        "mlp_ratios": ratios,
        "token_mixers": mixers,
        "pos_embs": pos_embs,
        "down_strides": [2] * (len(dims) - 1),
        "down_patch_size": shapes["network.1.proj.0.lkb_reparam.weight"][-1],
        "repmixer_kernel_size": shapes["network.0.0.token_mixer.reparam_conv.weight"][-1],
        "cls_ratio": shapes["conv_exp.reparam_conv.weight"][0] / dims[-1],
        "se_channels": shapes["conv_exp.se.reduce.weight"][0],
    }
    return FastViTHDConfig.from_dict(values, "the configuration that the tensors of vision_tower tell")
