"""CLIP's weights under the two sets of names in use: those of transformers, and those of OpenAI and open_clip.

| | transformers | OpenAI, open_clip |
|---|---|---|
| image encoder | `vision_model.encoder.layers.0.` | `visual.transformer.resblocks.0.` |
| text encoder | `text_model.encoder.layers.0.` | `transformer.resblocks.0.` |
| attention | `self_attn.q_proj`, `k_proj`, `v_proj` | `attn.in_proj_weight`, `in_proj_bias`: all three, stacked |
| projections | `visual_projection.weight`, (out, in) | `visual.proj`, (in, out) |

The parameters have transformers' names here, too, and the patch embedding is channels-last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ...checkpoints.modules import named_parameters, preserve_rng_state
from ...checkpoints.tensor_files import read_header, read_headers, read_tensors
from ...files import is_folder, read_json
from .clip import CLIP, VIT_L_14, CLIPConfig
from .strict import check_tensors

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
# Constants that are stored with the weights: the numbers of the positions, and the sizes of OpenAI's own file.
IGNORED = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
    "input_resolution",
    "context_length",
    "vocab_size",
)

_OFFICIAL = {
    "logit_scale": "logit_scale",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    _PATCHES: "visual.conv1.weight",
}
_OFFICIAL_PARTS = {
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
_OFFICIAL_IN_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")


@dataclass(frozen=True)
class Source:
    """Where a parameter stands in a file.

    Attributes:
        key: the tensor's name.
        third: which third of its rows; None for all.
        transposed: whether rows are columns there.
    """

    key: str
    third: int | None = None
    transposed: bool = False


def official_source(name: str) -> Source:
    """Where OpenAI and open_clip keep the parameter with this name of ours."""
    if name in _OFFICIAL:
        return Source(_OFFICIAL[name], transposed=name in _TRANSPOSED)
    if (found := _LAYER.fullmatch(name)) is None:
        part, _, leaf = name.rpartition(".")
        return Source(f"{_OFFICIAL_PARTS[part]}.{leaf}")
    encoder, number, part, leaf = found.groups()
    layer = f"{'visual.' if encoder == 'vision' else ''}transformer.resblocks.{number}"
    if part in _OFFICIAL_IN_LAYERS:
        return Source(f"{layer}.{_OFFICIAL_IN_LAYERS[part]}.{leaf}")
    return Source(f"{layer}.attn.in_proj_{leaf}", third=("q", "k", "v").index(part.removeprefix("self_attn.")[0]))


def sources_for(names: Iterable[str], keys: Iterable[str]) -> dict[str, Source]:
    """Where each parameter stands in a file with these keys."""
    official = any(key.startswith("visual.") for key in keys)
    return {name: official_source(name) if official else Source(name) for name in names}


def stored_shapes(shapes: dict[str, tuple[int, ...]], sources: dict[str, Source]) -> dict[str, tuple[int, ...]]:
    """The shapes that a file's tensors must have, by their names there.

    Args:
        shapes: of our parameters.
        sources: where they stand.
    """
    stored = {}
    for name, shape in shapes.items():
        source = sources[name]
        if name == _PATCHES:
            shape = (shape[0], shape[3], *shape[1:3])
        if source.transposed:
            shape = shape[::-1]
        stored[source.key] = shape if source.third is None else (3 * shape[0], *shape[1:])
    return stored


def load_clip(path: Path, config: CLIPConfig | None = None) -> CLIP:
    """CLIP with its weights, in float32 and in evaluation mode.

    Args:
        path: a folder with `config.json` and weights in transformers' layout; or a .safetensors file with either set of
            names, of OpenAI's ViT-L/14 where `config` says nothing else.
        config: of the network; by default the folder's own.

    Raises:
        CheckpointError: a file is missing or damaged, or its tensors are not those of the network.
        ConfigError: the configuration makes no sense.
    """
    if is_folder(path):
        if config is None:
            config = CLIPConfig.from_dict(read_json(path / "config.json"), f"'{path / 'config.json'}'")
        found = read_headers(path)
    else:
        found = read_header(path)
    with preserve_rng_state():
        network = CLIP(config or VIT_L_14)  # nothing is computed: arrays are lazy
    shapes = {name: tuple(array.shape) for name, array in named_parameters(network).items()}
    sources = sources_for(shapes, found)
    chosen = check_tensors(path, "CLIP", found, stored_shapes(shapes, sources), IGNORED)
    stored = read_tensors(chosen)
    weights = [(name, _taken(name, stored[source.key], source)) for name, source in sources.items()]
    network.load_weights(weights, strict=True)
    network.set_dtype(mx.float32)
    network.eval()
    return network


def _taken(name: str, tensor: mx.array, source: Source) -> mx.array:
    """A parameter from the tensor that holds it."""
    if source.third is not None:
        tensor = mx.split(tensor, 3)[source.third]
    if source.transposed:
        tensor = tensor.T
    return tensor.transpose(0, 2, 3, 1) if name == _PATCHES else tensor
