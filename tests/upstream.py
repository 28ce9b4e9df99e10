"""Writes a checkpoint in upstream's layout: PyTorch's names, dimensions in PyTorch's order, one or several files.

It is written out here by hand, name by name, and does not use `sanitize`; so reading it back tests that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component

PREFIXES = {
    "vision_tower": "model.vision_tower.vision_tower.model.",
    "mm_projector": "model.mm_projector.",
    "llm": "model.",
    "lm_head": "lm_head.",
    "diffusion_connector": "model.diffusion_connector.fusion.",
    "dit": "model.dit.",
    "vae_encoder": "model.vae.encoder.",
    "vae_decoder": "model.vae.decoder.",
}
# Linear layers of ours that are 1x1 convolutions there.
POINTWISE = {
    "vision_tower": ("fc1.weight", "fc2.weight", "reduce.weight", "expand.weight", "reparam_conv.weight"),
    "diffusion_connector": ("pointwise.weight",),
    "dit": ("patch_embed.proj.weight", "conv_inverted.weight", "conv_point.weight"),
    "vae_encoder": ("conv_inverted.weight", "conv_point.weight"),
    "vae_decoder": ("conv_inverted.weight", "conv_point.weight"),
}


def upstream_tensors(model: Path) -> dict[str, mx.array]:
    """All tensors of a model in our layout, under upstream's names and in upstream's shapes."""
    checkpoint = Checkpoint.open(model)
    tensors = {}
    for component, prefix in PREFIXES.items():
        module = load_component(checkpoint, component, dtype=mx.float32)
        for name, array in tree_flatten(module.parameters()):
            if component == "mm_projector":
                name = name.removeprefix("layers.")
            tensors[prefix + name] = _upstream(component, name, array)
    norms = [name for name in tensors if name.endswith(".running_var")]
    for name in norms:
        tensors[name.replace("running_var", "num_batches_tracked")] = mx.array(0, dtype=mx.int64)
    width = checkpoint.config.vision_tower.output_dim
    tensors[PREFIXES["vision_tower"] + "head.proj"] = mx.zeros((width, 24))
    return tensors


def _upstream(component: str, name: str, array: mx.array) -> mx.array:
    if ".layer_scale" in name:
        return array.reshape(-1, 1, 1)
    if name.endswith("to_qkv_multiscale.0.proj_out.weight"):
        return array.reshape(-1, array.shape[-1], 1, 1)
    if array.ndim == 4:
        return array.transpose(0, 3, 1, 2)
    if array.ndim == 3 and name.endswith("depthwise.weight"):
        return array.transpose(0, 2, 1)
    if array.ndim == 2 and name.endswith(POINTWISE.get(component, ())):
        return array[..., None] if component == "diffusion_connector" else array[..., None, None]
    return array


def write_upstream(
    folder: Path,
    model: Path,
    *,
    files: int = 1,
    change: Callable[[dict[str, mx.array]], object] | None = None,
    config: dict | None = None,
) -> Path:
    """Writes the model `model`, which is in our layout, into `folder` in upstream's.

    Args:
        folder: made if needed.
        model: see above.
        files: into how many the tensors are split; with an index where there is more than one.
        change: called with the tensors before they are written; may change them.
        config: changes to `config.json`; None removes a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = upstream_tensors(model)
    if change is not None:
        change(tensors)
    if files == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    else:
        names = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
        weight_map = {key: names[i * files // len(tensors)] for i, key in enumerate(sorted(tensors))}
        for name in names:
            part = {key: tensors[key] for key, file in weight_map.items() if file == name}
            mx.save_safetensors(str(folder / name), part)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    ours = Checkpoint.open(model).config
    content = {
        "model_type": "mobileo_inference",
        "diffusion_name_or_path": "diffusion",
        "mm_vision_tower": f"mobileclip_l_{ours.image_size}",
        "vlm_num_layers": ours.diffusion_connector.num_layers,
        "eos_token_id": list(ours.eos_token_ids),
        "an_unknown_key": 1,
        **ours.llm.to_dict(),
        **(config or {}),
    }
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    parts = {"transformer/config.json": ours.dit.to_dict(), "vae/config.json": ours.vae.to_dict()}
    parts["scheduler/scheduler_config.json"] = {"flow_shift": 3.0, "num_train_timesteps": 1000}
    for name, part in parts.items():
        (folder / "diffusion" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "diffusion" / name).write_text(json.dumps(part))
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    return folder
