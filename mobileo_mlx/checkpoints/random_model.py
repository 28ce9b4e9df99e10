"""A tiny model with random weights: real in structure, a few megabytes, and untrained.

It lets every command and every test run where no checkpoint is at hand. What it draws is noise, what it says is
gibberish, and both are the same for the same seed.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..atomic import atomic_folder
from ..models.dc_ae import DCAEConfig
from ..models.fastvithd import FastViTHDConfig, MMProjectorConfig
from ..models.mcp import MCPConfig
from ..models.mobileo import COMPONENTS, MobileOConfig, build
from ..models.qwen2 import Qwen2Config
from ..models.sana import SanaConfig
from ..tokenizer import END_OF_TEXT, IM_END, IM_START
from .convert import write_config
from .modules import named_parameters, preserve_rng_state
from .tensor_files import write_tensors

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, "[IMG]", "[/IMG]", "<image>")

# Enough text for some dozens of merges, so that tokens are not single bytes; the prompts' own words are in it.
_CORPUS = """
system user assistant You are a helpful assistant. Please generate an image based on the following caption:
What is in this image? What is the colour of the square? How many shapes are there? Is there a circle?
The image shows a red square, a blue circle, a green triangle and a yellow star on a white background.
a photo of a cat, a drawing of a dog, an apple on a table, a house beside a river, mountains at sunset
Make the circle larger. Replace the square with a triangle. Change the background to black. Add a small star.
There are two, three, four or five shapes: one is above, one is below, one is to the left or to the right of it.
"""
_MERGES = 144

# GELU and squeeze-and-excitation halve the signal again and again; the encoder's residual blocks only add to it.
_GAINS = {"vision_tower": 1.6, "mm_projector": 1.3, "vae_encoder": 0.5}
_IN_DEPTH = re.compile("token_mixer|convffn")


def write_random_model(folder: str | Path, *, seed: int = 0) -> None:
    """Writes a tiny untrained model in our layout into a new folder.

    It draws 128 x 128 pixels, sees images of 128 x 128 pixels, and has a byte-level tokenizer of a few hundred entries.

    Args:
        folder: must be new or empty.
        seed: of the weights.

    Raises:
        OutputError: the folder exists and is not empty, or can't be written, or the disk is full.
    """
    tokenizer = _tokenizer()
    config = _config(tokenizer)
    with atomic_folder(folder) as temporary, preserve_rng_state():
        for component in COMPONENTS:
            parameters = named_parameters(build(component, config))
            tensors = {name: random_parameter(seed, component, name, a.shape) for name, a in parameters.items()}
            write_tensors(temporary / f"{component}.safetensors", tensors)
        tokenizer.save(str(temporary / "tokenizer.json"))
        write_config(temporary, config, COMPONENTS)


def _tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE as Qwen2's, of `_MERGES` merges, with the special tokens after the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + _MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS.strip().splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _config(tokenizer: tokenizers.Tokenizer) -> MobileOConfig:
    channels, layers, latents, caption = (16, 16, 32, 32, 64, 64), (1,) * 6, 8, 64
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    vision = FastViTHDConfig(
        layers=(1, 1, 1, 1, 1), embed_dims=(8, 16, 32, 64, 128), mlp_ratios=(2, 2, 2, 2, 2), se_channels=16
    )
    llm = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(vocabulary),
        max_position_embeddings=2048,
    )
    return MobileOConfig(
        vision_tower=vision,
        mm_projector=MMProjectorConfig(vision.output_dim, llm.hidden_size, llm.hidden_size),
        llm=llm,
        diffusion_connector=MCPConfig(llm.hidden_size, hidden_dim=64, output_dim=caption),
        dit=SanaConfig(
            num_layers=3,
            num_attention_heads=4,
            attention_head_dim=16,
            num_cross_attention_heads=4,
            cross_attention_head_dim=16,
            caption_channels=caption,
            in_channels=latents,
            out_channels=latents,
            sample_size=4,
        ),
        vae=DCAEConfig(
            latent_channels=latents,
            attention_head_dim=16,
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            encoder_layers_per_block=layers,
            decoder_layers_per_block=layers,
        ),
        image_size=128,
        eos_token_ids=(vocabulary[IM_END], vocabulary[END_OF_TEXT]),
    )


def random_parameter(
    seed: int, component: str, name: str, shape: tuple[int, ...], *, published: bool = False
) -> mx.array:
    """Values (float32) that keep signals near 1 through all layers; a function of the arguments alone.

    Args:
        published: of a network of the published size. In its tower of 44 blocks what comes once a block would make
            signals grow to 1e21.
    """
    key = mx.random.key(zlib.crc32(f"{seed}/{component}/{name}".encode()))
    leaf = name.rpartition(".")[2]
    normal = mx.random.normal(shape, key=key)
    if leaf == "temperature":
        return mx.full(shape, 2.0)
    if leaf.startswith("layer_scale"):
        return mx.random.uniform(0.2, 0.8, shape, key=key)
    if leaf == "running_var":
        return mx.random.uniform(0.5, 1.5, shape, key=key)
    if leaf in ("bias", "running_mean"):
        return 0.1 * normal
    if leaf in ("layer_weights", "scale_shift_table"):
        return 0.4 * normal
    if len(shape) == 1:  # the weight of a norm
        return 1 + 0.1 * normal
    if name == "embed_tokens.weight":
        return 0.5 * normal
    # (out, in) or (out, height, width, in); in a grouped layer, (groups, out, in).
    fan_in = shape[-1] if len(shape) == 3 and shape[-1] == shape[-2] else math.prod(shape[1:])
    deep = published and component == "vision_tower" and _IN_DEPTH.search(name)
    return normal * ((1.0 if deep else _GAINS.get(component, 1.0)) * fan_in**-0.5)
