"""What a model sees and says, and not what it draws: FastVLM (arXiv 2412.13303) as mlx-vlm's `fastvlm` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import mlx.core as mx

from ..models import fastvithd
from ..models.fastvithd import FastViTHDConfig
from ..models.mobileo import to_upstream
from ..prompts import IMAGE_TOKEN_INDEX
from .export_format import Files, Format, generation_config, language_config, quantization_section, refuse

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .checkpoint import Checkpoint

_BICUBIC = 3  # Pillow's number


def _check(source: Checkpoint) -> None:
    """mlx-vlm's source fixes the tower, and the width inside of the projector."""
    projector, hidden_size = source.config.mm_projector, source.config.llm.hidden_size
    if source.config.vision_tower != FastViTHDConfig():
        raise refuse(source, "mlx-vlm", "its vision tower is not the one that mlx-vlm has, FastViTHD of 44 blocks")
    if projector.hidden_dim != hidden_size:
        why = f"its mm_projector has {projector.hidden_dim} channels inside, and mlx-vlm's those of the language model"
        raise refuse(source, "mlx-vlm", f"{why}, {hidden_size}")


def _tensors(component: str, weights: dict[str, mx.array], source: Checkpoint) -> dict[str, mx.array]:
    if component == "llm":
        return {f"language_model.model.{name}": w for name, w in weights.items()}
    if component == "lm_head":
        return {f"language_model.lm_head.{name}": w for name, w in weights.items()}
    if component == "mm_projector":
        return {f"mm_projector.{name}": w for name, w in to_upstream(component, weights, source.config).items()}
    # All convolutions of mlx-vlm's tower have four dimensions, pointwise ones too.
    named = {}
    for name, w in to_upstream(component, weights | _classifier(weights), source.config).items():
        name = name.replace("patch_embed.", "patch_embed.blocks.")
        if ".layer_scale" in name:
            w = w.reshape(1, 1, -1)
        elif w.ndim == 4:
            w = w.transpose(0, 2, 3, 1)
        named[f"vision_tower.vision_model.{name}"] = w
    return named


def _classifier(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """It is computed there, and nothing is made of it."""
    return {name: w for name, w in fastvithd.unused(weights).items() if not name.endswith("num_batches_tracked")}


def _files(source: Checkpoint, tokenizer: Tokenizer | None, layers: Mapping[str, tuple[int, int]]) -> Files:
    config = source.config
    side = config.image_size
    written = {
        **language_config(source, tied=source.tied),
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "image_aspect_ratio": "pad",
        "image_token_index": IMAGE_TOKEN_INDEX,
        "mm_hidden_size": config.mm_projector.input_dim,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": f"mobileclip_l_{side}",
        # The published 512 would cut a picture's 256 features and the question off.
        "tokenizer_model_max_length": config.llm.max_position_embeddings,
        "tokenizer_padding_side": "right",
        **quantization_section(layers),
    }
    processor = {
        "processor_class": "FastVLMProcessor",
        "image_processor_type": "FastVLMImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
    }
    return {
        "config.json": written,
        "generation_config.json": generation_config(source),
        "preprocessor_config.json": processor,
    }


MLX_VLM = Format(
    name="mlx-vlm",
    components=("vision_tower", "mm_projector", "llm", "lm_head"),
    quantized=("llm", "lm_head"),
    bits=None,
    half=False,
    made_for="mlx",
    index=True,
    check=_check,
    tensors=_tensors,
    files=_files,
)
