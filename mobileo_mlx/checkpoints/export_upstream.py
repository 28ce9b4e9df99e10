"""Back to the original's layout, key for key, so that PyTorch reads what was trained here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import ConfigError
from ..files import kind_of, read_json
from ..models import fastvithd
from ..models.mobileo import COMPONENTS, MobileOConfig, build, to_upstream, upstream_name
from .export_format import Files, Format, generation_config, refuse
from .modules import named_parameters, preserve_rng_state
from .tensor_files import read_tensors

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .checkpoint import Checkpoint

_OWN = "diffusion"  # the folder of diffusers' configurations, where the published ones do not fit
_BESIDE = {
    "dit": f"{_OWN}/transformer/config.json",
    "vae": f"{_OWN}/vae/config.json",
    "scheduler": f"{_OWN}/scheduler/scheduler_config.json",
}
_CONFIG, _GENERATION = "config.json", "generation_config.json"


def _check(source: Checkpoint) -> None:
    """What is written is read again and compared: much of a configuration is fixed in upstream's source."""
    files = _files(source, None, {})
    try:
        read = _read_back(source, files)
    except ConfigError as error:
        raise refuse(source, "upstream", f"there it would not be read ({error})") from error
    if odd := _differing(read.to_dict(), source.config.to_dict()):
        raise refuse(source, "upstream", f"there is no place for its {' and '.join(odd)}, which the original fixes")


def _tensors(component: str, weights: dict[str, mx.array], source: Checkpoint) -> dict[str, mx.array]:
    named = to_upstream(component, weights, source.config)
    if component == "vision_tower":
        unused = fastvithd.unused(weights)
        if source.layout == "upstream":
            stored = source.tensors(component)
            unused = read_tensors({name: stored[name] for name in unused if name in stored})
        named |= unused
    return {upstream_name(component, name): w for name, w in named.items()}


def _files(source: Checkpoint, tokenizer: Tokenizer | None, layers: Mapping[str, tuple[int, int]]) -> Files:
    if source.layout == "upstream":
        names = (_CONFIG, _GENERATION, *_BESIDE.values())
        kept = {name: read_json(source.path / name) for name in names if kind_of(source.path / name)}
        # The original's training leaves `diffusion` beside the model's folder; here it is inside.
        parents = {name: source.path.parent / name for name in _BESIDE.values() if name not in kept}
        return kept | {name: read_json(file) for name, file in parents.items() if kind_of(file)}
    files: Files = {_CONFIG: _config(source, tokenizer)}
    if len(source.config.eos_token_ids) > 1:
        files[_GENERATION] = generation_config(source)
    try:
        if _read_back(source, files).to_dict() == source.config.to_dict():
            return files
    except ConfigError:
        pass
    config = source.config
    files[_CONFIG]["diffusion_name_or_path"] = _OWN
    files[_BESIDE["dit"]] = config.dit.to_dict()
    files[_BESIDE["vae"]] = config.vae.to_dict()
    files[_BESIDE["scheduler"]] = {"flow_shift": config.flow_shift, "num_train_timesteps": config.num_train_timesteps}
    return files


def _config(source: Checkpoint, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All fields that the published `config.json` has, with this model's values."""
    from mobileo_weights import SIZES, upstream_config

    config, llm = source.config, source.config.llm
    templates = [upstream_config(size) for size in SIZES]
    # The larger one names another DiT; a model like neither gets configurations of its own.
    template = next((t for t in templates if t["hidden_size"] == llm.hidden_size), templates[0])
    padding = tokenizer.token_id("<|endoftext|>") if tokenizer is not None else None
    ends = config.eos_token_ids
    return {
        **template,
        **llm.to_dict(),
        **({"bos_token_id": padding, "pad_token_id": padding} if padding is not None else {}),
        "dtype": str(source.stored_dtype("llm")).removeprefix("mlx.core."),
        "eos_token_id": ends[0] if ends else None,
        "layer_types": ["full_attention"] * llm.num_hidden_layers,
        "max_window_layers": llm.num_hidden_layers,
        "mm_hidden_size": config.mm_projector.input_dim,
        "mm_vision_tower": f"mobileclip_l_{config.image_size}",
        "tie_word_embeddings": source.tied,
        "vlm_num_layers": config.diffusion_connector.num_layers,
    }


@preserve_rng_state()
def _read_back(source: Checkpoint, files: Files) -> MobileOConfig:
    """The configuration that our own reader, and the tensors' shapes, make of the files. Nothing is computed."""
    shapes: dict[str, tuple[int, ...]] = {}
    for component in COMPONENTS:
        if component == "lm_head" and source.tied:
            continue
        weights = to_upstream(component, named_parameters(build(component, source.config)), source.config)
        shapes |= {upstream_name(component, name): w.shape for name, w in weights.items()}
    beside = {name: files[file] for name, file in _BESIDE.items() if file in files}
    return MobileOConfig.from_upstream(
        files[_CONFIG], shapes, generation_config=files.get(_GENERATION), **beside, source=_CONFIG
    )


def _differing(read: Mapping[str, Any], wanted: Mapping[str, Any], start: str = "") -> list[str]:
    """The names of the values that are not the same in both."""
    found = []
    for name in wanted:
        one, other = read.get(name), wanted[name]
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differing(one, other, f"{start}{name}.")
        elif one != other and not (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other)):
            found.append(start + name)
    return found


UPSTREAM = Format(
    name="upstream",
    components=COMPONENTS,
    quantized=(),
    bits=None,
    half=False,
    made_for="pt",
    index=False,
    check=_check,
    tensors=_tensors,
    files=_files,
)
