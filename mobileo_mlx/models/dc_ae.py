"""DC-AE (arXiv 2410.10733): an autoencoder that makes images 32 times smaller in each direction.

Residual blocks at the high resolutions, EfficientViT blocks with multi-scale linear attention at the low ones, and
shortcuts without parameters, by pixel shuffling, around every change of resolution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, starmap

import mlx.core as mx
import mlx.nn as nn

from ..config import Config
from ..errors import ConfigError
from ..ops import backend
from ..ops.activations import silu
from ..ops.bands import Strips, evaluated, joined, paired, remembered, split
from ..ops.conv import Conv2d, GroupedLinear, UpsampledConv2d, conv_weight, pointwise_weight
from ..ops.depthwise import DepthwiseConv2d
from .layers import GLUMBConv, relu_linear_attention

RMS_NORM_EPS = 1e-5


@dataclass(frozen=True)
class DCAEConfig(Config):
    """Keys as in diffusers' AutoencoderDC; `glumb_ratio` and `attention_eps` are ours."""

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: tuple[str, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    decoder_block_types: tuple[str, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    encoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "interpolate"
    downsample_block_type: str = "Conv"
    scaling_factor: float = 0.41407
    glumb_ratio: float = 4.0
    attention_eps: float = 1e-15

    def __post_init__(self) -> None:
        if self.upsample_block_type != "interpolate" or self.downsample_block_type.lower() != "conv":
            raise ConfigError(
                "this DC-AE resamples by "
                f"{self.upsample_block_type!r} and {self.downsample_block_type!r}; "
                "only 'interpolate' and 'Conv', as in dc-ae-f32c32-sana, are supported."
            )

    @property
    def factor(self) -> int:
        """Pixels a latent covers in each direction."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)


class RMSNorm(nn.Module):
    """RMSNorm over the channels with a bias, which `mlx.nn.RMSNorm` lacks."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = mx.ones((dim,))
        self.bias = mx.zeros((dim,))

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, RMS_NORM_EPS) + self.bias


class ResBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = Conv2d(dim, dim, 3, padding=1)
        self.conv2 = Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = RMSNorm(dim)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.norm(self.conv2(nn.silu(self.conv1(x))))

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result; see `Decoder.stream`."""
        memory: deque[mx.array] = deque()
        hidden = evaluated(map(silu, self.conv1.stream(remembered(strips, memory))))
        return evaluated(starmap(lambda x, y: x + self.norm(y), paired(memory, self.conv2.stream(hidden))))


class MultiscaleProjection(nn.Module):
    """Aggregates q, k and v over a neighbourhood: depthwise, then a 1x1 convolution for each head's q, k or v."""

    def __init__(self, dim: int, heads: int, kernel: int):
        super().__init__()
        self.proj_in = DepthwiseConv2d(3 * dim, kernel, bias=False)
        self.proj_out = GroupedLinear(3 * dim, 3 * heads)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj_out(self.proj_in(x))


class MultiscaleLinearAttention(nn.Module):
    """EfficientViT's attention (arXiv 2205.14756).

    The original changes to the quadratic form for very small maps; both are the same sum in another order.
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
    def __init__(self, dim: int, ratio: float):
        super().__init__(dim, ratio)
        self.norm = RMSNorm(dim)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.norm(super().__call__(x))

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result; see `Decoder.stream`."""
        memory: deque[mx.array] = deque()
        hidden = evaluated(map(self._widened, remembered(strips, memory)))
        gated = map(self._gated, self.conv_depth.stream(hidden))
        return evaluated(starmap(lambda x, h: x + self.norm(self.conv_point(h)), paired(memory, gated)))

    def _widened(self, x: mx.array) -> mx.array:
        return silu(self.conv_inverted(x))

    def _gated(self, h: mx.array) -> mx.array:
        h, gate = mx.split(h, 2, axis=-1)
        return h * silu(gate)


class EfficientViTBlock(nn.Module):
    def __init__(self, dim: int, scales: tuple[int, ...], config: DCAEConfig):
        super().__init__()
        self.attn = MultiscaleLinearAttention(dim, config.attention_head_dim, scales, config.attention_eps)
        self.conv_out = ResidualGLUMBConv(dim, config.glumb_ratio)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv_out(self.attn(x))

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result; see `Decoder.stream`. Attention needs the whole map."""
        x = self.attn(joined(strips))
        mx.eval(x)
        return self.conv_out.stream(split(x, widest=4))


class Downsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, *, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.conv = Conv2d(dim_in, dim_out, 3, stride=2, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        y = self._strided(x) if backend.on_cpu() else self.conv(x)
        if not self.shortcut:
            return y
        return y + _averaged(_pixel_unshuffle(x), y.shape[-1])

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result; see `Decoder.stream`."""
        memory: deque[mx.array] = deque()

        def added(x: mx.array, y: mx.array) -> mx.array:
            return y + _averaged(_pixel_unshuffle(x), y.shape[-1]) if self.shortcut else y

        pairs = paired(memory, self.conv.stream(remembered(strips, memory)), ratio=Fraction(2))
        return evaluated(starmap(added, pairs))

    def _strided(self, x: mx.array) -> mx.array:
        """The same convolution without a stride: 2x2 over cells of 2x2 pixels.

        The gradient of a strided convolution is a plain loop on MLX's CPU backend, 30 times slower than this.
        """
        dim_out, _, _, dim_in = self.conv.weight.shape
        # Row 2 i - 1 is the lower half of the cell above; its upper half has no weight. So too for columns.
        w = mx.pad(self.conv.weight, [(0, 0), (1, 0), (1, 0), (0, 0)]).reshape(dim_out, 2, 2, 2, 2, dim_in)
        w = w.transpose(0, 1, 3, 5, 2, 4).reshape(dim_out, 2, 2, 4 * dim_in)
        cells = mx.pad(_pixel_unshuffle(x), [(0, 0), (1, 0), (1, 0), (0, 0)])
        return mx.conv2d(cells, w) + self.conv.bias


class Upsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, *, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.conv = UpsampledConv2d(dim_in, dim_out)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.conv(x)
        return y + self._shortcut(x, y.shape[-1]) if self.shortcut else y

    def stream(self, strips: Strips) -> Strips:
        """The strips of the result; see `Decoder.stream`."""
        memory: deque[mx.array] = deque()

        def added(x: mx.array, y: mx.array) -> mx.array:
            return y + self._shortcut(x, y.shape[-1]) if self.shortcut else y

        pairs = paired(memory, self.conv.stream(remembered(strips, memory)), ratio=Fraction(1, 2))
        return chain.from_iterable(map(split, evaluated(starmap(added, pairs))))

    def _shortcut(self, x: mx.array, dim: int) -> mx.array:
        return _pixel_shuffle(mx.repeat(x, 4 * dim // x.shape[-1], axis=-1))


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
    """Means over groups of consecutive channels, so that `dim` are left."""
    return x.reshape(*x.shape[:-1], dim, -1).mean(axis=-1)


def _block(kind: str, dim: int, scales: tuple[int, ...], config: DCAEConfig) -> nn.Module:
    return ResBlock(dim) if kind == "ResBlock" else EfficientViTBlock(dim, scales, config)


class Encoder(nn.Module):
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

    def blocks(self) -> list[Callable[[mx.array], mx.array]]:
        """All blocks in order."""
        return [self.conv_in, *(b for stage in self.down_blocks for b in stage), self._out]

    def encode(self, image: mx.array) -> mx.array:
        return joined(self.stream(image.astype(self.conv_out.weight.dtype)))

    def stream(self, image: mx.array) -> Strips:
        """The strips of the latents, computed strip by strip; see `Decoder.stream`."""
        strips = self.conv_in.stream(split(image))
        for stage in self.down_blocks:
            for block in stage:
                strips = block.stream(strips)
        memory: deque[mx.array] = deque()
        latents = self.conv_out.stream(remembered(strips, memory))
        return evaluated(starmap(lambda x, y: y + _averaged(x, y.shape[-1]), paired(memory, latents)))

    def _out(self, x: mx.array) -> mx.array:
        y = self.conv_out(x)
        return y + _averaged(x, y.shape[-1])

    def __call__(self, image: mx.array) -> mx.array:
        """Latents before scaling, (B, H / factor, W / factor, latent_channels).

        Args:
            image: (B, H, W, 3) in [-1, 1].
        """
        x = image
        for block in self.blocks():
            x = block(x)
        return x


class Decoder(nn.Module):
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

    def blocks(self) -> list[Callable[[mx.array], mx.array]]:
        """All blocks in order."""
        return [self._in, *(b for stage in reversed(self.up_blocks) for b in stage), self._out]

    def decode(self, latents: mx.array) -> mx.array:
        return joined(self.stream(latents.astype(self.conv_in.weight.dtype)))

    def stream(self, latents: mx.array) -> Strips:
        """The strips of the image, from top to bottom, each computed before the next one begins.

        What attends to the whole map is computed at once. What sees only a neighbourhood, which is everything at
        the high resolutions, passes strips on and keeps the few rows that the next strip needs: the result is the
        same up to rounding, and memory above the latents' resolution grows with an image's width, not its area.
        """
        strips = split(self._in(latents))
        for stage in reversed(self.up_blocks):
            for block in stage:
                strips = block.stream(strips)
        return evaluated(self.conv_out.stream(map(self._rectified, strips)))

    def _in(self, x: mx.array) -> mx.array:
        y = self.conv_in(x)
        return y + mx.repeat(x, y.shape[-1] // x.shape[-1], axis=-1)

    def _rectified(self, x: mx.array) -> mx.array:
        return nn.relu(self.norm_out(x))

    def _out(self, x: mx.array) -> mx.array:
        return self.conv_out(self._rectified(x))

    def __call__(self, latents: mx.array) -> mx.array:
        """The image, (B, h factor, w factor, 3), about [-1, 1] and not clamped.

        Args:
            latents: (B, h, w, latent_channels), already divided by `scaling_factor`.
        """
        x = latents
        for block in self.blocks():
            x = block(x)
        return x


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
