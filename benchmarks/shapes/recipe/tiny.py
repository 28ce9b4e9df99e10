"""How the bundled model `tiny` was made: its configuration and tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.recipes.tokenizers import add_prompts, byte_level
from mobileo_mlx.models.dc_ae import DCAEConfig
from mobileo_mlx.models.fastvithd import FastViTHDConfig, MMProjectorConfig
from mobileo_mlx.models.mcp import MCPConfig
from mobileo_mlx.models.mobileo import MobileOConfig
from mobileo_mlx.models.qwen2 import Qwen2Config
from mobileo_mlx.models.sana import SanaConfig

from ..text import vocabulary
from ..world import NEW_COLOURS, NEW_SHAPES, WORLD

if TYPE_CHECKING:
    import tokenizers

SIDE = 64  # pixels, of what is drawn and of what is seen
GRID = 4  # latents and image tokens are GRID x GRID, and every object covers 2 x 2 of them

_STAGES: dict[str, tuple[Any, ...]] = {
    # No blocks at full resolution: the first convolution halves the image.
    "block_types": ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
    "block_out_channels": (16, 24, 48, 96, 128),
    "layers_per_block": (0, 1, 1, 1, 2),
    "qkv_multiscales": ((), (), (), (5,), (5,)),
}


def tiny_config(vocab_size: int, eos_token_ids: tuple[int, ...]) -> MobileOConfig:
    """About 7 million parameters in the real model's blocks."""
    width = 128  # of the language model
    vision = FastViTHDConfig(
        layers=(1, 1, 1, 1, 1),
        embed_dims=(16, 32, 64, 128, 128),
        mlp_ratios=(4, 4, 4, 4, 4),
        down_strides=(2, 2, 1, 1),
        se_channels=16,
    )
    return MobileOConfig(
        vision_tower=vision,
        mm_projector=MMProjectorConfig(vision.output_dim, width, width),
        llm=Qwen2Config(
            hidden_size=width,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocab_size,
            max_position_embeddings=2048,
        ),
        diffusion_connector=MCPConfig(width, hidden_dim=128, output_dim=160),
        dit=SanaConfig(
            num_layers=6,
            num_attention_heads=5,
            attention_head_dim=32,
            num_cross_attention_heads=4,
            cross_attention_head_dim=40,
            caption_channels=160,
            sample_size=GRID,
            interpolation_scale=1.0,  # positions: without them training hardly gets the order of objects right
        ),
        vae=DCAEConfig(
            **_both_halves(),
            scaling_factor=1.0,  # the autoencoder is trained towards latents of unit variance
            glumb_ratio=2.0,
        ),
        image_size=SIDE,
        eos_token_ids=eos_token_ids,
        flow_shift=6.0,  # the layout is decided at high noise
    )


def _both_halves() -> dict[str, Any]:
    return {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in _STAGES.items()}


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE in which every word of the world is one token, and the constant text of the prompts a few."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are merges: the words give out first
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The words of later finetuning are single tokens too.
    words = sorted({word for new in (*NEW_COLOURS, *NEW_SHAPES) for word in vocabulary(WORLD.extended(new))})
    tokenizer.train_from_iterator([f"{word} {word}" for word in words], trainer)
    add_prompts(tokenizer)
    return tokenizer
