"""CLIP's networks in MLX against transformers' `CLIPModel`, with the same random weights, tensor by tensor.

    python -m benchmarks.clip_parity          small networks, in seconds
    python -m benchmarks.clip_parity --full   ViT-L/14, too: 3.4 GB of memory, some minutes on a CPU

Prints a Markdown table of the largest difference of each tensor, as a share of its largest value. The weights
go through a file that transformers wrote.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.evals.detectors.clip import CLIP, LEGACY_EOS, VIT_L_14, CLIPConfig, TextConfig, VisionConfig
from mobileo_mlx.evals.detectors.clip_weights import load_clip

SMALL = CLIPConfig(
    TextConfig(32, 56, 3, 4, vocab_size=60, max_position_embeddings=20, eos_token_id=LEGACY_EOS),
    VisionConfig(48, 80, 3, 3, image_size=32, patch_size=8),
    projection_dim=24,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ViT-L/14, too")
    chosen = {"small": SMALL, "ViT-L/14": VIT_L_14} if parser.parse_args().full else {"small": SMALL}
    columns = {name: errors(config) for name, config in chosen.items()}
    print(f"| tensor | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(f'{column[row]:.1e}' for column in columns.values())} |")


def errors(config: CLIPConfig) -> dict[str, float]:
    """The largest difference by tensor, of the layers that of the worst one."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = reference(config)
        theirs.save_pretrained(folder)
        ours = load_clip(Path(folder))
        found: dict[str, float] = {}
        for name, a, b in pairs(theirs, ours, config):
            found[name] = max(found.get(name, 0), difference(a, b))
        return found


def reference(config: CLIPConfig) -> Any:
    """transformers' model with random weights, of which each has an effect."""
    import torch
    import transformers

    sizes = config.to_dict()
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(generator=generator).mul_(scale).add_(float("norm" in name and name.endswith("weight")))
    return theirs


def pairs(theirs: Any, ours: CLIP, config: CLIPConfig) -> Iterator[tuple[str, Any, Any]]:
    """The names of tensors, ours, and theirs."""
    import torch

    text, vision = config.text_config, config.vision_config
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, vision.image_size, vision.image_size, 3), dtype=np.float32)
    ids = rng.integers(3, text.vocab_size - 1, (3, text.max_position_embeddings))
    for row, end in zip(ids, (-1, 5, 1), strict=True):
        row[end] = text.vocab_size - 1  # the largest id ends a text
    with torch.no_grad():
        nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        tokens = torch.from_numpy(ids)
        seen, read = (
            theirs.vision_model(nchw, output_hidden_states=True),
            theirs.text_model(tokens, output_hidden_states=True),
        )
        both = theirs(tokens, nchw)
    mine, words = mx.array(pixels), mx.array(ids)
    for name, network, output, given in (
        ("image", ours.vision_model, seen, mine),
        ("text", ours.text_model, read, words),
    ):
        for place, (a, b) in enumerate(zip(network.states(given), output.hidden_states, strict=True)):
            yield f"{name}: {'hidden states of all layers' if place else 'embeddings'}", a, b
        yield f"{name}: pooled", network(given), output.pooler_output
    for name, a, b in (
        ("image", ours.image_features(mine), both.image_embeds),
        ("text", ours.text_features(words), both.text_embeds),
    ):
        yield f"{name}: features, normalised", a / mx.linalg.norm(a, axis=-1, keepdims=True), b
    yield "logits", ours(mine, words), both.logits_per_image


def difference(ours: mx.array, theirs: Any) -> float:
    """The largest one, as a share of the largest value."""
    a, b = np.array(ours, np.float64), theirs.numpy().astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    return float(np.abs(a - b).max() / np.abs(b).max())


if __name__ == "__main__":
    main()
