"""Low-rank adaptation (arXiv 2106.09685) with mlx-lm's layers, written as the PEFT library writes it.

The update of a layer is scale B A with scale = alpha / rank. mlx-lm keeps A and B transposed, as `lora_a` (inputs,
rank) and `lora_b` (rank, outputs). How an adapter is read and applied for use is in `mobileo_mlx.checkpoints.adapters`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..atomic import atomic_write
from ..checkpoints.adapters import CONFIG_FILE, TRAINED_FILE, WEIGHTS_FILE, Adapter
from ..checkpoints.modules import get_submodule, set_submodule
from ..checkpoints.peft_names import Factor
from ..checkpoints.tensor_files import write_tensors
from ..errors import OptionError

LLM_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Component to the start of upstream's names and the layers that are adapted: of the DiT, in every block, those of both
# attentions and the two 1x1 convolutions, which here are linear layers.
_TARGETS = {
    "llm": ("model.", rf"layers\.\d+\.(self_attn|mlp)\.({'|'.join(LLM_LAYERS)})"),
    "dit": (
        "model.dit.",
        r"transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.(conv_inverted|conv_point))",
    ),
}
_CONVOLUTIONS = ("conv_inverted", "conv_point")


@dataclass(frozen=True)
class LoRAConfig:
    """What low-rank updates look like.

    Attributes:
        rank: of the updates.
        alpha: the updates are multiplied by alpha / rank.
        dropout: share of the inputs of each update that are zero in training.
        components: "llm", "dit" or both.

    Raises:
        OptionError: a value is out of range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    components: tuple[str, ...] = ("llm",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise OptionError(f"the rank of an adapter is {self.rank}; it has to be 1 or more.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise OptionError(f"the alpha of an adapter is {self.alpha}; it has to be above 0.")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"the dropout of an adapter is {self.dropout}; it has to be at least 0 and below 1.")
        if not self.components or not set(self.components) <= set(_TARGETS):
            raise OptionError(f"{', '.join(self.components) or 'nothing'} can't be adapted; {', '.join(_TARGETS)} can.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Dropout(nn.Module):
    """Dropout whose mask is a function of a key, and not of the global random state.

    So a step that is repeated after resuming sees the same mask; and so does gradient checkpointing, which computes a
    block a second time for the gradient. The key is set by `set_dropout_key`.

    Args:
        p: share of the inputs that become zero.
    """

    def __init__(self, p: float):
        super().__init__()
        self._keep = 1 - p
        self._key: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or self._keep == 1:
            return x
        if self._key is None:
            raise RuntimeError("set_dropout_key has to be called before a training step")
        return x * mx.random.bernoulli(self._keep, x.shape, key=self._key) * (1 / self._keep)


def add_lora(modules: Mapping[str, nn.Module], config: LoRAConfig, *, key: mx.array) -> None:
    """Puts low-rank updates beside layers, in place. At first they are zero and the model is unchanged.

    The updates are trainable and float32. The layers keep their frozen state: freeze the modules first.

    Args:
        modules: the component networks by name, dense or quantized; those of `config.components` are adapted.
        config: see `LoRAConfig`.
        key: of the random A, uniform within 1 / sqrt(inputs) as PEFT's.
    """
    for component, component_key in zip(config.components, mx.random.split(key, len(config.components)), strict=True):
        module = modules[component]
        _, pattern = _TARGETS[component]
        paths = [path for path, _ in module.named_modules() if re.fullmatch(pattern, path)]
        for path, layer_key in zip(sorted(paths), mx.random.split(component_key, len(paths)), strict=True):
            layer = _wrap(module, path, config.rank, config.scale, config.dropout)
            bound = layer.lora_a.shape[0] ** -0.5
            layer.lora_a = mx.random.uniform(-bound, bound, layer.lora_a.shape, key=layer_key)


def load_lora(modules: Mapping[str, nn.Module], adapter: Adapter, *, dropout: float = 0.0) -> None:
    """Puts the updates of an adapter beside layers, in place and with its values, to train them further.

    Args:
        modules: component networks by name, among them those that the adapter updates.
        adapter: already checked against the model.
        dropout: as in `LoRAConfig`.
    """
    for component, updates in adapter.low_rank.items():
        for path, update in updates.items():
            layer = _wrap(modules[component], path, update.rank, update.scale, dropout)
            a, b = update.factors()
            layer.lora_a, layer.lora_b = a.T, b.T


def _wrap(module: nn.Module, path: str, rank: int, scale: float, dropout: float) -> Any:
    # Importing mlx-lm takes seconds, and much of training's own code does without.
    from mlx_lm.tuner.lora import LoRALinear

    linear: Any = get_submodule(module, path)  # mlx-lm's annotation leaves the quantized ones out, its code doesn't
    layer = LoRALinear.from_base(linear, r=rank, scale=scale)
    layer.dropout = Dropout(dropout)
    layer.train(linear.training)
    set_submodule(module, path, layer)
    return layer


def set_dropout_key(module: nn.Module, key: mx.array) -> None:
    """Sets the keys of all `Dropout` layers below a module.

    To be called once a step, before the loss: with gradient checkpointing a later key would reach the gradient of what
    was computed with an earlier one.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    if layers:
        # The order of a module's children is that of their names' insertion, the same in every process.
        for layer, layer_key in zip(layers, mx.random.split(key, len(layers)), strict=True):
            layer._key = layer_key


def write_adapter(
    folder: Path, modules: Mapping[str, nn.Module], config: LoRAConfig | None, *, base_model: str | Path
) -> None:
    """Writes the updates as PEFT does, and what is trained in full as `trained.safetensors`.

    Each file is written whole or not at all, over an older one; a file that is not needed is removed.

    Args:
        folder: that exists.
        modules: component networks by name.
        config: that of `add_lora`; None where there are no updates.
        base_model: what the adapter is for, recorded for the reader.

    Raises:
        OutputError: a file can't be written, or the disk is full.
    """
    updates = _updates(modules) if config is not None else {}
    trained = {f"{name}.{key}": value for name, module in modules.items() for key, value in _fully_trained(module)}
    if trained:
        with atomic_write(folder / TRAINED_FILE, overwrite=True) as temporary:
            write_tensors(temporary, trained)
    else:
        (folder / TRAINED_FILE).unlink(missing_ok=True)
    if config is not None:
        with atomic_write(folder / WEIGHTS_FILE, overwrite=True) as temporary:
            write_tensors(temporary, updates, made_for="pt")
        with atomic_write(folder / CONFIG_FILE, overwrite=True) as temporary:
            temporary.write_text(json.dumps(_peft_config(config, str(base_model)), indent=2) + "\n", encoding="utf-8")
    else:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (folder / name).unlink(missing_ok=True)


def _updates(modules: Mapping[str, nn.Module]) -> dict[str, mx.array]:
    """A and B of all updates, under PEFT's names and in PyTorch's layout."""
    tensors = {}
    for component, (prefix, _) in _TARGETS.items():
        for path, layer in _lora_layers(modules[component]) if component in modules else ():
            for letter, array in (("A", layer.lora_a.T), ("B", layer.lora_b.T)):
                if path.endswith(_CONVOLUTIONS):
                    array = array[..., None, None]
                tensors[Factor(prefix + path, letter).name] = array
    return tensors


def _fully_trained(module: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """The arrays of a component that are trained in full, by their names in the checkpoint.

    Of a layer with a trainable array these are all arrays: training changes others too, the running statistics of
    BatchNorm and the connector's temperature.
    """
    wrapped = {path for path, _ in _lora_layers(module)}
    for path, layer in module.named_modules():
        own = {name for name, value in layer.items() if isinstance(value, mx.array) and not name.startswith("_")}
        if path in wrapped or own.isdisjoint(layer.trainable_parameters()):
            continue
        name_in_checkpoint = path.removesuffix(".linear") if path.removesuffix(".linear") in wrapped else path
        for name in sorted(own):
            yield f"{name_in_checkpoint}.{name}".lstrip("."), layer[name]


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, layer in module.named_modules():
        if "lora_a" in layer:
            yield path, layer


def _peft_config(config: LoRAConfig, base_model: str) -> dict[str, Any]:
    # A list is compared with the ends of all layers' names, an expression with the whole names: the DiT's would also
    # match layers of the autoencoder.
    targets = [_TARGETS[component] for component in config.components]
    expression = "|".join(re.escape(prefix) + pattern for prefix, pattern in targets)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(LLM_LAYERS) if config.components == ("llm",) else expression,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
