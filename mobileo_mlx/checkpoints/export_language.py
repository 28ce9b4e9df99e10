"""The language model for other programs: the `llm` folder of Mobile-O's iOS app, and a folder of mlx-lm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import mlx.core as mx

from .export_format import (
    Files,
    Format,
    generation_config,
    image_token_id,
    language_config,
    quantization_section,
    refuse,
    takes_anything,
)

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .checkpoint import Checkpoint

APP_GROUP_SIZE = 64


def _check_app(source: Checkpoint) -> None:
    llm, projector = source.config.llm, source.config.mm_projector
    widths = (llm.hidden_size, llm.intermediate_size, projector.input_dim, projector.hidden_dim)
    if odd := [width for width in widths if width % APP_GROUP_SIZE]:
        # The app's loader has one group size for all layers, and quantizes each of them.
        raise refuse(source, "app", f"a layer has {odd[0]} inputs, and the app quantizes groups of {APP_GROUP_SIZE}")


def _app_tensors(component: str, weights: dict[str, mx.array], source: Checkpoint) -> dict[str, mx.array]:
    if component == "mm_projector":
        return {f"multi_modal_projector.linear_{name.removeprefix('layers.')}": w for name, w in weights.items()}
    if component == "lm_head":
        return {f"language_model.lm_head.{name}": w for name, w in weights.items()}
    named = {f"language_model.model.{name}": w for name, w in weights.items()}
    if source.tied:  # the app's model has a head of its own
        start = "embed_tokens."
        named |= {
            f"language_model.lm_head.{name.removeprefix(start)}": w
            for name, w in weights.items()
            if name.startswith(start)
        }
    return named


def _app_files(source: Checkpoint, tokenizer: Tokenizer | None, layers: Mapping[str, tuple[int, int]]) -> Files:
    config = {
        **language_config(source, tied=False),
        "model_type": "llava_qwen2",
        "mm_hidden_size": source.config.mm_projector.input_dim,
        "mm_vision_tower": f"mobileclip_l_{source.config.image_size}",
        "image_token_index": image_token_id(source, tokenizer),
        **quantization_section(layers),
    }
    return {"config.json": config}


def _mlx_lm_tensors(component: str, weights: dict[str, mx.array], source: Checkpoint) -> dict[str, mx.array]:
    prefix = "model." if component == "llm" else "lm_head."
    return {prefix + name: w for name, w in weights.items()}


def _mlx_lm_files(source: Checkpoint, tokenizer: Tokenizer | None, layers: Mapping[str, tuple[int, int]]) -> Files:
    config = {
        **language_config(source, tied=source.tied),
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **quantization_section(layers),
    }
    return {"config.json": config, "generation_config.json": generation_config(source)}


# Names and quantization as the original's export for its app makes them; the parts that it gives to Core ML (the DiT,
# the autoencoder, the connector and the vision tower) need Apple's coremltools, and are not written here.
APP = Format(
    name="app",
    components=("mm_projector", "llm", "lm_head"),
    quantized=("mm_projector", "llm", "lm_head"),
    bits=4,
    half=True,
    made_for="mlx",
    index=True,
    check=_check_app,
    tensors=_app_tensors,
    files=_app_files,
)

# mlx_lm.models.qwen2 has the names of transformers, which are the checkpoint's.
MLX_LM = Format(
    name="mlx-lm",
    components=("llm", "lm_head"),
    quantized=("llm", "lm_head"),
    bits=None,
    half=False,
    made_for="mlx",
    index=True,
    check=takes_anything,
    tensors=_mlx_lm_tensors,
    files=_mlx_lm_files,
)
