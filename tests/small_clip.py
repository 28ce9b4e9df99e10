"""A small CLIP with random weights and a vocabulary of its own, in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.evals.detectors.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from mobileo_mlx.tokenizer_files import byte_values

IMAGE_SIZE = 32
MERGES = (
    *("r e", "re d</w>", "a t", "c a", "ca r</w>", "o r", "o f</w>", "p h", "o t", "ph ot", "phot o</w>"),
    *("b l", "u e</w>", "bl ue</w>", "re d", "i t", "' s</w>", "l o", "d o"),
)


def vocabulary() -> dict[str, int]:
    """Of a tokenizer: bytes, bytes that end a word, what merges make, and the two special tokens last."""
    tokens = sorted(byte_values())
    tokens += [f"{token}</w>" for token in tokens] + [merge.replace(" ", "") for merge in MERGES]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def write_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in MERGES))


def small_config() -> CLIPConfig:
    return CLIPConfig(
        TextConfig(32, 56, 2, 4, vocab_size=len(vocabulary()), eos_token_id=len(vocabulary()) - 1),
        VisionConfig(48, 80, 2, 3, image_size=IMAGE_SIZE, patch_size=8),
        projection_dim=24,
    )


def small_clip(seed: int = 0) -> CLIP:
    """The network, with weights that matter, each of them."""
    network = CLIP(small_config())
    rng = np.random.default_rng(seed)
    weights = []
    for name, array in named_parameters(network).items():
        value = rng.standard_normal(array.shape, dtype=np.float32) * (
            0.2 if array.ndim < 2 else array.shape[-1] ** -0.5
        )
        weights.append((name, mx.array(value + ("norm" in name and name.endswith("weight")))))
    network.load_weights(weights)
    network.eval()
    return network


def write_clip(folder: Path) -> None:
    """The same as a folder that `load_clip` and transformers read."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    config = small_config().to_dict()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **config}))
    tensors = named_parameters(small_clip())
    name = "vision_model.embeddings.patch_embedding.weight"
    tensors[name] = mx.contiguous(tensors[name].transpose(0, 3, 1, 2))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
