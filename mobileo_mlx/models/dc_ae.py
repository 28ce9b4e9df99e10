"""DC-AE (arXiv 2410.10733): an autoencoder that makes images 32 times smaller in each direction.

Residual blocks at the high resolutions, EfficientViT blocks with multi-scale linear attention at the low ones, and
shortcuts without parameters, by pixel shuffling, around every change of resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..config import Config
from ..errors import ConfigError
from .layers import (
    Conv2d,
    DepthwiseConv2d,
    GLUMBConv,
    GroupedLinear,
    conv_weight,
    pointwise_weight,
    relu_linear_attention,
)

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


class EfficientViTBlock(nn.Module):
    def __init__(self, dim: int, scales: tuple[int, ...], config: DCAEConfig):
        super().__init__()
        self.attn = MultiscaleLinearAttention(dim, config.attention_head_dim, scales, config.attention_eps)
        self.conv_out = ResidualGLUMBConv(dim, config.glumb_ratio)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv_out(self.attn(x))


class Downsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, *, shortcut: bool = True):
        super().__init__()
        self.shortcut = shortcut
        self.conv = Conv2d(dim_in, dim_out, 3, stride=2, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        y = self._strided(x) if mx.default_device() == mx.cpu else self.conv(x)
        if not self.shortcut:
            return y
        return y + _averaged(_pixel_unshuffle(x), y.shape[-1])

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
        self.conv = Conv2d(dim_in, dim_out, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        y = self._upsampled(x)
        if not self.shortcut:
            return y
        return y + _pixel_shuffle(mx.repeat(x, 4 * y.shape[-1] // x.shape[-1], axis=-1))

    def _upsampled(self, x: mx.array) -> mx.array:
        """The convolution of the image made larger by repeating pixels.

        Three rows of repeated pixels are two rows of the small image, the nearer one twice; so too for columns. For
        each of the four pixels that a small one becomes, this is a 2x2 convolution of the small image: 16
        multiplications instead of 36, and the large image is never made.
        """
        batch, height, width, _ = x.shape
        # Summed in float32, so that in half precision the taps are rounded once.
        w = self.conv.weight.astype(mx.float32)  # (O, 3, 3, I)
        rows = ((w[:, :1], w[:, 1:2] + w[:, 2:]), (w[:, :1] + w[:, 1:2], w[:, 2:]))
        padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        phases = []
        for i, pair in enumerate(rows):
            v = mx.concatenate(list(pair), axis=1)  # (O, 2, 3, I)
            columns = ((v[:, :, :1], v[:, :, 1:2] + v[:, :, 2:]), (v[:, :, :1] + v[:, :, 1:2], v[:, :, 2:]))
            for j, taps in enumerate(columns):
                part = padded[:, i : i + height + 1, j : j + width + 1]
                phases.append(mx.conv2d(part, mx.concatenate(list(taps), axis=2).astype(self.conv.weight.dtype)))
        y = mx.stack(phases, axis=3).reshape(batch, height, width, 2, 2, -1)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1) + self.conv.bias


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
        """All blocks in order. A caller that evaluates after each bounds the memory that is in flight."""
        return [self.conv_in, *(b for stage in self.down_blocks for b in stage), self._out]

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
        """All blocks in order. A caller that evaluates after each bounds the memory that is in flight."""
        return [self._in, *(b for stage in reversed(self.up_blocks) for b in stage), self._out]

    def _in(self, x: mx.array) -> mx.array:
        y = self.conv_in(x)
        return y + mx.repeat(x, y.shape[-1] // x.shape[-1], axis=-1)

    def _out(self, x: mx.array) -> mx.array:
        return self.conv_out(nn.relu(self.norm_out(x)))

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
