"""How the bundled model `emoji` was made: its configuration and its initial weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mobileo_mlx.models.dc_ae import DCAEConfig
from mobileo_mlx.models.fastvithd import FastViTHDConfig, MMProjectorConfig
from mobileo_mlx.models.mcp import MCPConfig
from mobileo_mlx.models.mobileo import MobileOConfig
from mobileo_mlx.models.qwen2 import Qwen2Config
from mobileo_mlx.models.sana import SanaConfig

from ..world import SIDE

LATENTS = 8  # on a side of the image
GRID = 4  # image tokens, and patches of the DiT, on a side
SHIFT = 6.0  # of the noise levels, in training and in sampling: the layout is decided at high noise
_WIDTH = 192  # of the language model
_DIT_HEADS = 7

VAE = DCAEConfig(
    # No blocks at full resolution: the first convolution halves the image. 16 pixels to a latent.
    encoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",),
    decoder_block_types=("ResBlock",) * 4 + ("EfficientViTBlock",),
    encoder_block_out_channels=(16, 16, 64, 128, 128),
    decoder_block_out_channels=(16, 16, 64, 128, 128),
    encoder_layers_per_block=(0, 1, 1, 1, 2),
    decoder_layers_per_block=(0, 1, 1, 2, 2),
    encoder_qkv_multiscales=((),) * 4 + ((5,),),
    decoder_qkv_multiscales=((),) * 4 + ((5,),),
    scaling_factor=1.0,  # the autoencoder is trained towards latents of unit variance
    glumb_ratio=2.0,
)
_VISION = FastViTHDConfig(
    layers=(1, 1, 1, 1, 1),
    embed_dims=(16, 32, 64, 128, 256),
    mlp_ratios=(4, 4, 4, 4, 4),
    down_strides=(2, 2, 2, 1),
    se_channels=16,
)


def emoji_config(vocab_size: int, eos_token_ids: tuple[int, ...]) -> MobileOConfig:
    """About 11 million parameters in the real model's blocks."""
    return MobileOConfig(
        vision_tower=_VISION,
        mm_projector=MMProjectorConfig(_VISION.output_dim, _WIDTH, _WIDTH),
        llm=Qwen2Config(
            hidden_size=_WIDTH,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=vocab_size,
            max_position_embeddings=2048,
        ),
        diffusion_connector=MCPConfig(_WIDTH, hidden_dim=_WIDTH, output_dim=32 * _DIT_HEADS),
        dit=SanaConfig(
            num_layers=6,
            num_attention_heads=_DIT_HEADS,
            attention_head_dim=32,
            num_cross_attention_heads=_DIT_HEADS,
            cross_attention_head_dim=32,
            caption_channels=32 * _DIT_HEADS,
            patch_size=LATENTS // GRID,  # 16 patches rather than 64 latents: a quarter of the work
            sample_size=LATENTS,
            interpolation_scale=1.0,  # positions: without them training hardly gets the order of things right
        ),
        vae=VAE,
        image_size=SIDE,
        eos_token_ids=eos_token_ids,
        flow_shift=SHIFT,
    )


def start_from_names(model: Any) -> None:
    """Changes random weights so that what the words say reaches the image from the first step on.

    With MLX's initial weights the words of a name are a small part of what a patch reads, the mean over some twenty
    tokens that are the same in all prompts, and training hardly tells a thousand names apart.

    Args:
        model: its `llm` and its `dit`.
    """
    words = model.llm.embed_tokens
    words.weight = words.weight * (0.7 * _WIDTH**0.5)  # a standard deviation of 0.7 rather than 1 / sqrt(width)
    for block in model.dit.transformer_blocks:
        block.attn2.to_k.weight = block.attn2.to_k.weight * 4  # each head prefers some tokens
        block.scale_shift_table[mx.array([2, 5])] = 0.3  # the gates
