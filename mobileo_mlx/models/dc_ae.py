"""DC-AE (arXiv 2410.10733): an autoencoder that makes images 32 times smaller in each direction.

Residual blocks at the high resolutions, EfficientViT blocks with multi-scale linear attention at the low ones. What is
unusual is "residual autoencoding" (figure 4): around every change of resolution there is a shortcut without parameters,
which moves pixels to channels and takes means, or repeats channels and moves them to pixels, so that the convolutions
learn what is left. It is no variational autoencoder: there is no distribution to sample from.

Each network is a sequence of steps. Calling it takes whole maps, `encode` and `decode` are the same in little memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, Count, CountOrNone, Epsilon, Kernel, Range, Ratio, Width
from ..ops import bands
from ..ops.activations import silu
from ..ops.blocks import Chain, Residual, WholeMap
from ..ops.conv import Conv2d, GroupedLinear, UpsampledConv2d, channels_first, conv_weight, pointwise_weight
from ..ops.depthwise import DepthwiseConv2d
from .layers import GLUMBConv, relu_linear_attention

RMS_NORM_EPS = 1e-5


Block = Literal["ResBlock", "EfficientViTBlock"]


@dataclass(frozen=True)
class DCAEConfig(Config):
    """Keys as in diffusers' AutoencoderDC; `glumb_ratio` and `attention_eps` are ours.

    The tuples have an element for each stage, from the image to the latents, for the encoder and the decoder alike.
    """

    in_channels: Literal[3] = 3
    latent_channels: Count = 32
    attention_head_dim: Count = 32
    encoder_block_types: tuple[Block, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    decoder_block_types: tuple[Block, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    encoder_block_out_channels: tuple[Width, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[Width, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[CountOrNone, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[CountOrNone, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[Kernel, ...], ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[tuple[Kernel, ...], ...] = ((), (), (), (5,), (5,), (5,))
    # As in dc-ae-f32c32-sana; diffusers has other ways.
    upsample_block_type: Literal["interpolate"] = "interpolate"
    downsample_block_type: Literal["Conv", "conv"] = "Conv"
    scaling_factor: Annotated[float, Range(1e-4, 1e4)] = 0.41407
    glumb_ratio: Ratio = 4.0
    attention_eps: Epsilon = 1e-15

    @property
    def factor(self) -> int:
        """Pixels a latent covers in each direction."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)

    def problem(self) -> str:
        stages = len(self.decoder_block_out_channels)
        if not 2 <= stages <= 8:
            return f"has decoder_block_out_channels for {stages} stages, which are 2 to 8"
        for part in ("encoder", "decoder"):
            names = [f"{part}_{name}" for name in ("block_out_channels", "block_types", "layers_per_block")]
            for name in (*names, f"{part}_qkv_multiscales"):
                if len(getattr(self, name)) != stages:
                    return f"has {name} of another length than decoder_block_out_channels"
            dims, kinds, layers = (getattr(self, name) for name in names)
            if not all(layers[1:]):
                return f"has a 0 in {names[2]} after the first stage"
            used = dims if layers[0] else dims[1:]
            if any(4 * larger % smaller for larger, smaller in itertools.pairwise(used)):
                return f"has {names[0]} that do not divide four times the one before"
            if dims[-1] % self.latent_channels:
                return f"has latent_channels = {self.latent_channels}, which does not divide the last {names[0]}"
            attentive = [dim for dim, kind in zip(dims, kinds, strict=True) if kind == "EfficientViTBlock"]
            if attentive and min(attentive) < self.attention_head_dim:
                return f"has attention_head_dim = {self.attention_head_dim}, more than {names[0]} with attention"
            if attentive and min(attentive) * self.glumb_ratio < 1:
                return f"has glumb_ratio = {self.glumb_ratio}, which leaves no channel"
        return ""

    def blocks(self, part: str) -> dict[str, tuple[str, int]]:
        """The start of the tensors' names of each stage, with what decides on its number of blocks, and that.

        Args:
            part: "encoder" or "decoder".
        """
        key, lists = f"{part}_layers_per_block", "down_blocks" if part == "encoder" else "up_blocks"
        counts = getattr(self, key)
        # Between two stages the one that is larger has a step that changes the size.
        return {
            f"{lists}.{i}.": (f"{key}[{i}] = {count}", count + (count > 0 and i + 1 < len(counts)))
            for i, count in enumerate(counts)
        }


class RMSNorm(nn.Module):
    """RMSNorm over the channels with a bias, which `mlx.nn.RMSNorm` lacks."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, RMS_NORM_EPS) + self.bias


class ResBlock(Chain):
    """x + norm(conv(SiLU(conv(x)))), (B, H, W, dim) to the same."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = Conv2d(dim, dim, 3, padding=1)
        self.conv2 = Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = RMSNorm(dim)

    def steps(self) -> Sequence[Any]:
        return (Residual(self.conv1, silu, self.conv2, self.norm),)


class MultiscaleProjection(nn.Module):
    """Aggregates q, k and v over a neighbourhood: depthwise, then a 1x1 convolution for each head's q, k or v."""

    def __init__(self, dim: int, heads: int, kernel: int):
        super().__init__()
        self.proj_in = DepthwiseConv2d(3 * dim, kernel, bias=False)
        self.proj_out = GroupedLinear(3 * dim, 3 * heads)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj_out(self.proj_in(x))


class MultiscaleLinearAttention(WholeMap):
    """EfficientViT's attention (arXiv 2205.14756, section 3.1) with its residual, (B, H, W, dim) to the same.

    ReLU linear attention over all pixels, on q, k and v as they are and aggregated over neighbourhoods, one for each of
    `scales`, the sides of those. The original changes to the quadratic form for very small maps; both are the same sum
    in another order.
    """

    def __init__(self, dim: int, head_dim: int, scales: tuple[int, ...], eps: float):
        super().__init__()
        heads = dim // head_dim
        inner = heads * head_dim
        self.head_dim, self.eps = head_dim, eps
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_qkv_multiscale = [MultiscaleProjection(inner, heads, kernel) for kernel in scales]
        self.to_out = nn.Linear(inner * (1 + len(scales)), dim, bias=False)
        self.norm_out = RMSNorm(dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, _ = x.shape
        qkv = mx.concatenate([self.to_q(x), self.to_k(x), self.to_v(x)], axis=-1)
        scales = mx.concatenate([qkv, *(project(qkv) for project in self.to_qkv_multiscale)], axis=-1)
        # A head is 3 head_dim *consecutive* channels of the concatenation, whichever projection they came from.
        per_head = scales.reshape(batch, height * width, -1, 3 * self.head_dim).swapaxes(1, 2)
        q, k, v = mx.split(per_head, 3, axis=-1)  # (B, heads, H W, head_dim)
        y = relu_linear_attention(q, k, v, self.eps)
        y = self.to_out(y.swapaxes(1, 2).reshape(batch, height, width, -1))
        return x + self.norm_out(y)


class ResidualGLUMBConv(GLUMBConv):
    """x + norm(GLUMBConv(x)), (B, H, W, dim) to the same."""

    def __init__(self, dim: int, ratio: float):
        super().__init__(dim, ratio)
        self.norm = RMSNorm(dim)

    def steps(self) -> Sequence[Any]:
        return (Residual(*super().steps(), self.norm, widest=4),)


class EfficientViTBlock(Chain):
    """Attention over the whole map, then a feed-forward that sees a neighbourhood; (B, H, W, dim) to the same."""

    def __init__(self, dim: int, scales: tuple[int, ...], config: DCAEConfig):
        super().__init__()
        self.attn = MultiscaleLinearAttention(dim, config.attention_head_dim, scales, config.attention_eps)
        self.conv_out = ResidualGLUMBConv(dim, config.glumb_ratio)

    def steps(self) -> Sequence[Any]:
        return self.attn, self.conv_out


class Downsample(Chain):
    """Half the size by a convolution, (B, H, W, dim_in) to (B, H / 2, W / 2, dim_out), H and W even.

    Its shortcut has the four pixels of a cell as channels, and the means of groups of them.
    """

    def __init__(self, dim_in: int, dim_out: int, *, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.conv = Conv2d(dim_in, dim_out, 3, stride=2, padding=1)

    def steps(self) -> Sequence[Any]:
        return (Residual(self.conv, join=_plus_unshuffled) if self.shortcut else self.conv,)


class Upsample(Chain):
    """Twice the size by repeating pixels and a convolution, (B, H, W, dim_in) to (B, 2 H, 2 W, dim_out).

    Its shortcut has each channel several times, and every four of them as the pixels of a cell.
    """

    def __init__(self, dim_in: int, dim_out: int, *, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.conv = UpsampledConv2d(dim_in, dim_out)

    def steps(self) -> Sequence[Any]:
        return (Residual(self.conv, join=_plus_shuffled) if self.shortcut else self.conv,)


def _plus_unshuffled(x: mx.array, y: mx.array) -> mx.array:
    return y + _averaged(_pixel_unshuffle(x), y.shape[-1])


def _plus_shuffled(x: mx.array, y: mx.array) -> mx.array:
    return y + _pixel_shuffle(_repeated(x, 4 * y.shape[-1]))


def _pixel_unshuffle(x: mx.array) -> mx.array:
    """(B, 2 H, 2 W, C) to (B, H, W, 4 C), the four pixels of a channel side by side."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, dim)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * dim)


def _pixel_shuffle(x: mx.array) -> mx.array:
    """The inverse: (B, H, W, 4 C) to (B, 2 H, 2 W, C)."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height, width, dim // 4, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, dim // 4)


def _averaged(x: mx.array, dim: int) -> mx.array:
    """Means over groups of consecutive channels, so that `dim` are left; summed in float32."""
    return x.reshape(*x.shape[:-1], dim, -1).astype(mx.float32).mean(axis=-1).astype(x.dtype)


def _repeated(x: mx.array, dim: int) -> mx.array:
    """Each channel several times, so that there are `dim`."""
    return mx.repeat(x, dim // x.shape[-1], axis=-1)


def _block(kind: str, dim: int, scales: tuple[int, ...], config: DCAEConfig) -> nn.Module:
    return ResBlock(dim) if kind == "ResBlock" else EfficientViTBlock(dim, scales, config)


class Encoder(Chain):
    """From an image to its latents before scaling: (B, H, W, 3) in [-1, 1] to (B, H / factor, W / factor, latents)."""

    def __init__(self, config: DCAEConfig):
        super().__init__()
        dims, layers = config.encoder_block_out_channels, config.encoder_layers_per_block
        kinds, scales = config.encoder_block_types, config.encoder_qkv_multiscales
        # Where the first stage has no blocks, the image is made smaller at once.
        self.conv_in = (
            Conv2d(config.in_channels, dims[0], 3, padding=1)
            if layers[0]
            else Downsample(config.in_channels, dims[1], shortcut=False)
        )
        self.down_blocks: list[list[nn.Module]] = []
        for i, dim in enumerate(dims):
            stage = [_block(kinds[i], dim, scales[i], config) for _ in range(layers[i])]
            if i + 1 < len(dims) and layers[i]:
                stage.append(Downsample(dim, dims[i + 1]))
            self.down_blocks.append(stage)
        self.conv_out = Conv2d(dims[-1], config.latent_channels, 3, padding=1)

    def steps(self) -> Sequence[Any]:
        blocks = [block for stage in self.down_blocks for block in stage]
        return self.conv_in, *blocks, Residual(self.conv_out, join=lambda x, y: y + _averaged(x, y.shape[-1]))

    def encode(self, image: mx.array) -> mx.array:
        """What calling it gives, for inference, in little memory; the input may have any dtype."""
        return bands.run(self, image.astype(self.conv_out.weight.dtype))


class Decoder(Chain):
    """From latents, divided by `scaling_factor`, to an image of about [-1, 1], not clamped; shapes as of `Encoder`."""

    def __init__(self, config: DCAEConfig):
        super().__init__()
        dims, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        kinds, scales = config.decoder_block_types, config.decoder_qkv_multiscales
        self.conv_in = Conv2d(config.latent_channels, dims[-1], 3, padding=1)
        self.up_blocks: list[list[nn.Module]] = []  # in the checkpoint's order; the last one runs first
        for i, dim in enumerate(dims):
            stage = [_block(kinds[i], dim, scales[i], config) for _ in range(layers[i])]
            if i + 1 < len(dims) and layers[i]:
                stage.insert(0, Upsample(dims[i + 1], dim))
            self.up_blocks.append(stage)
        self.norm_out = RMSNorm(dims[0] if layers[0] else dims[1])
        # Where the first stage has no blocks, the last step makes the image as large as it was.
        self.conv_out = (
            Conv2d(dims[0], config.in_channels, 3, padding=1)
            if layers[0]
            else Upsample(dims[1], config.in_channels, shortcut=False)
        )

    def steps(self) -> Sequence[Any]:
        first = Residual(self.conv_in, join=lambda x, y: y + _repeated(x, y.shape[-1]))
        blocks = [block for stage in reversed(self.up_blocks) for block in stage]
        return first, *blocks, self.norm_out, nn.relu, self.conv_out

    def decode(self, latents: mx.array) -> mx.array:
        """What calling it gives, for inference, in little memory; the input may have any dtype."""
        return bands.run(self, latents.astype(self.conv_in.weight.dtype))


def sanitize(weights: dict[str, mx.array], head_dim: int) -> dict[str, mx.array]:
    """Upstream's names, without `encoder.` or `decoder.`, are ours; the convolutions change their layout."""
    out = {}
    for name, w in weights.items():
        if name.endswith(("conv_inverted.weight", "conv_point.weight")):
            w = pointwise_weight(w)
        elif name.endswith("proj_out.weight"):
            w = w.reshape(-1, head_dim, w.shape[1])  # (G O, I, 1, 1) -> (G, O, I)
        elif w.ndim == 4:
            w = conv_weight(w)
        out[name] = w
    return out


def to_upstream(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`sanitize` undone."""
    out = {}
    for name, w in weights.items():
        if name.endswith(("conv_inverted.weight", "conv_point.weight")):
            w = w[..., None, None]
        elif name.endswith("proj_out.weight"):
            w = w.reshape(-1, w.shape[-1], 1, 1)  # (G, O, I) -> (G O, I, 1, 1)
        elif w.ndim == 4:
            w = channels_first(w)
        out[name] = w
    return out
