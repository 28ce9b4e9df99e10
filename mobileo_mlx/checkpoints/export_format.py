"""What the formats of `export` have in common: how one is described, the language model's dimensions, quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import OptionError
from ..prompts import IMAGE_TOKEN

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .checkpoint import Checkpoint

Files = dict[str, dict[str, Any]]  # JSON by file name


@dataclass(frozen=True)
class Format:
    """A layout that another program reads.

    Attributes:
        name: what `--format` takes.
        components: those that are written.
        quantized: those whose linear layers and embeddings get the bits.
        bits: how many where none are asked for; None leaves everything as it is stored.
        half: whether 16 bits mean float16 whatever is stored; else a 16-bit dtype stays what it is.
        made_for: see `tensor_files.write_tensors`.
        index: whether there is an index of the files where there is one file.
        check: raises OptionError where a model can't be written so.
        tensors: the weights of a component under the format's names and in its shapes. It is given the component's
            name, its weights under our names, and the checkpoint.
        files: the configurations, by file name. They are given the checkpoint, the tokenizer or None, and the bits and
            group size of each quantized layer by its name in the format.
    """

    name: str
    components: tuple[str, ...]
    quantized: tuple[str, ...]
    bits: int | None
    half: bool
    made_for: str
    index: bool
    check: Callable[[Checkpoint], None]
    tensors: Callable[[str, dict[str, mx.array], Checkpoint], dict[str, mx.array]]
    files: Callable[[Checkpoint, Tokenizer | None, Mapping[str, tuple[int, int]]], Files]


def language_config(source: Checkpoint, *, tied: bool) -> dict[str, Any]:
    """The dimensions of the language model, as transformers' Qwen2Config names them.

    Args:
        source: the model.
        tied: whether the embedding serves as lm_head in what is written.
    """
    llm = source.config.llm
    ends = source.config.eos_token_ids
    return {
        "attention_dropout": 0.0,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        **llm.to_dict(),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "use_sliding_window": False,
    }


def generation_config(source: Checkpoint) -> dict[str, Any]:
    """transformers' `generation_config.json`: greedy, as `ask` is, and the tokens that end an answer."""
    return {"do_sample": False, "eos_token_id": list(source.config.eos_token_ids)}


def layer_bits(tensors: Mapping[str, mx.array], bits: int) -> dict[str, tuple[int, int]]:
    """Bits and group size of the quantized layers among tensors, by the layers' names; "" is one alone."""
    found = {}
    for name, scales in tensors.items():
        layer, dot, leaf = name.rpartition(".")
        if leaf == "scales":
            width = tensors[f"{layer}{dot}weight"].shape[-1] * 32 // bits
            found[layer] = (bits, width // scales.shape[-1])
    return found


def quantization_section(layers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The section `quantization` of MLX's configurations: what most layers have, and the others by name."""
    if not layers:
        return {}
    ((bits, group_size), _), *_ = Counter(layers.values()).most_common()
    odd = {name: {"group_size": g, "bits": b} for name, (b, g) in layers.items() if (b, g) != (bits, group_size)}
    return {"quantization": {"group_size": group_size, "bits": bits, **odd}}


def image_token_id(source: Checkpoint, tokenizer: Tokenizer | None) -> int:
    """The id that stands for an image in a prompt: that of `<image>`, else one that no text becomes.

    In the published models it is 151648, their last row.
    """
    rows = source.config.llm.vocab_size
    if tokenizer is None:
        return rows - 1
    if (found := tokenizer.token_id(IMAGE_TOKEN)) is not None:
        return found
    return rows - 1 if tokenizer.vocab_size < rows else rows


def takes_anything(source: Checkpoint) -> None:
    """The check of a format that takes each model."""


def refuse(source: Checkpoint, format_name: str, why: str) -> OptionError:
    """What to raise where a format can't hold a model."""
    others = "mlx-lm" if format_name == "app" else "app or mlx-lm"
    return OptionError(f"'{source.name}' can't be written as {format_name}: {why}; choose {others}.")
