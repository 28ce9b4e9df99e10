"""FastViTHD in PyTorch, for `benchmarks.vs_torch`: written from the description of the network, with its names.

timm's `fastvit_mci3` is the same network, but it needs torchvision; this one needs torch alone. It takes the paths that
are fast there: grouped convolutions, one fused attention, and channels-last where the caller asks for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileo_mlx.models.fastvithd import FastViTHDConfig


class Reparam(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.reparam_conv = nn.Conv2d(dim_in, dim_out, kernel, stride, kernel // 2, groups=groups)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.reparam_conv(x)
        return F.gelu(x) if self.act else x


class LargeKernel(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, kernel: int, stride: int):
        super().__init__()
        self.lkb_reparam = nn.Conv2d(dim_in, dim_out, kernel, stride, kernel // 2, groups=dim_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.lkb_reparam(x))


class Downsample(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Sequential(LargeKernel(dim_in, dim_out, kernel, stride), Reparam(dim_out, dim_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FeedForward(nn.Module):
    def __init__(self, dim: int, ratio: float, eps: float):
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv", nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=False))
        self.conv.add_module("bn", nn.BatchNorm2d(dim, eps))
        self.fc1 = nn.Conv2d(dim, int(dim * ratio), 1)
        self.fc2 = nn.Conv2d(int(dim * ratio), dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    def __init__(self, dim: int, ratio: float, config: FastViTHDConfig):
        super().__init__()
        self.token_mixer = Reparam(dim, dim, config.repmixer_kernel_size, groups=dim, act=False)
        self.convffn = FeedForward(dim, ratio, config.norm_eps)
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)


class Attention(nn.Module):
    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class AttentionBlock(nn.Module):
    def __init__(self, dim: int, ratio: float, config: FastViTHDConfig):
        super().__init__()
        self.norm = nn.LayerNorm(dim, config.norm_eps)
        self.token_mixer = Attention(dim, config.attention_head_dim)
        self.convffn = FeedForward(dim, ratio, config.norm_eps)
        self.layer_scale_1 = nn.Parameter(torch.ones(dim, 1, 1))
        self.layer_scale_2 = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        mixed = self.token_mixer(self.norm(x.flatten(2).transpose(1, 2)))
        x = x + self.layer_scale_1 * mixed.transpose(1, 2).reshape(batch, dim, height, width)
        return x + self.layer_scale_2 * self.convffn(x)


class SqueezeExcite(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.reduce = nn.Conv2d(dim, inner, 1)
        self.expand = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(gate))))


class ConvExpand(nn.Module):
    def __init__(self, dim: int, dim_out: int, inner: int):
        super().__init__()
        self.reparam_conv = nn.Conv2d(dim, dim_out, 3, padding=1, groups=dim)
        self.se = SqueezeExcite(dim_out, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.se(self.reparam_conv(x)))


class FastViTHD(nn.Module):
    """(B, 3, H, W) in [0, 1] to tokens (B, h w, output_dim)."""

    def __init__(self, config: FastViTHDConfig):
        super().__init__()
        dims = config.embed_dims
        self.patch_embed = nn.Sequential(
            Reparam(3, dims[0], 3, stride=2),
            Reparam(dims[0], dims[0], 3, stride=2, groups=dims[0]),
            Reparam(dims[0], dims[0], 1),
        )
        network: list[nn.Module] = []
        for i, dim in enumerate(dims):
            if i > 0:
                network.append(Downsample(dims[i - 1], dim, config.down_patch_size, config.down_strides[i - 1]))
            if (kernel := config.pos_embs[i]) is not None:
                network.append(Reparam(dim, dim, kernel, groups=dim, act=False))
            block = RepMixerBlock if config.token_mixers[i] == "repmixer" else AttentionBlock
            network.append(nn.Sequential(*(block(dim, config.mlp_ratios[i], config) for _ in range(config.layers[i]))))
        self.network = nn.Sequential(*network)
        self.conv_exp = ConvExpand(dims[-1], config.output_dim, config.se_channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.conv_exp(self.network(self.patch_embed(pixel_values))).flatten(2).transpose(1, 2)
