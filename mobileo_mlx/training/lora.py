"""Low-rank adaptation (arXiv 2106.09685) with mlx-lm's layers, written as the PEFT library writes it.

The update of a layer is scale B A with scale = alpha / rank. mlx-lm keeps A and B transposed, as `lora_a` (inputs,
rank) and `lora_b` (rank, outputs). How an adapter is read and applied for use is in `mobileo_mlx.checkpoints.adapters`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..atomic import atomic_write
from ..checkpoints.adapters import CONFIG_FILE, LARGEST_SCALE, TRAINED_FILE, WEIGHTS_FILE, Adapter
from ..checkpoints.hub_download import split_name
from ..checkpoints.modules import get_submodule, set_submodule
from ..checkpoints.peft_names import Factor
from ..checkpoints.tensor_files import write_tensors
from ..errors import OptionError, format_names, format_number
from ..files import expand, is_folder
from ..models.mobileo import MobileOConfig
from .model_arrays import Arrays, ModelArrays

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
_LARGEST_RANK = 4096  # no layer has more inputs or outputs, but for the vocabulary
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
        if not 1 <= self.rank <= _LARGEST_RANK:
            raise OptionError(
                f"the rank of an adapter is {format_number(self.rank)}; it has to be 1 to {_LARGEST_RANK}."
            )
        if not 0 < self.alpha <= self.rank * LARGEST_SCALE:
            raise OptionError(
                f"the alpha of an adapter is {format_number(self.alpha)}; it has to be above 0, and at most "
                f"{LARGEST_SCALE:g} times the rank."
            )
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

    Raises:
        OptionError: the adapter has magnitudes.
    """
    _refuse_magnitudes(adapter)
    for component, updates in adapter.low_rank.items():
        for path, update in updates.items():
            layer = _wrap(modules[component], path, update.rank, update.scale, dropout)
            a, b = update.factors()
            layer.lora_a, layer.lora_b = a.T, b.T


def start_from(
    modules: Mapping[str, nn.Module], adapter: Adapter, config: LoRAConfig | None, model_config: MobileOConfig
) -> None:
    """Gives what is about to be trained the values that an adapter has; what it does not have stays as it is.

    Args:
        modules: component networks by name, after `add_lora`.
        adapter: already checked against the model.
        config: that of `add_lora`; None where there are no updates.
        model_config: the model's.

    Raises:
        OptionError: the adapter changes something that is not trained here, its rank or alpha is another one, or it
            has magnitudes.
    """
    _refuse_magnitudes(adapter)
    updates = {
        (component, path): update for component, found in adapter.low_rank.items() for path, update in found.items()
    }
    full = {
        f"{component}.{name}": array
        for component in adapter.full.keys() | adapter.trained.keys()
        for name, array in adapter.replacements(component, model_config).items()
    }
    layers = {(component, path): layer for component in modules for path, layer in _lora_layers(modules[component])}
    places = {f"{component}.{name}": (layer, leaf) for component, name, layer, leaf in _trained(modules)}
    if others := [f"{component}.{path}" for component, path in updates.keys() - layers.keys()]:
        raise OptionError(
            f"the adapter '{adapter.name}' has low-rank updates where this run has none "
            f"({format_names(others)}); choose --llm and --dit as it was trained."
        )
    if others := sorted(full.keys() - places.keys()):
        raise OptionError(
            f"the adapter '{adapter.name}' changes what this run does not train ({format_names(others)}); choose "
            "--train, --dit and --vision as it was trained."
        )
    found = sorted({(update.rank, float(f"{update.scale * update.rank:.6g}")) for update in updates.values()})
    if config is not None and found and found != [(config.rank, float(f"{config.alpha:.6g}"))]:
        has = " or ".join(f"rank {rank} and alpha {alpha:g}" for rank, alpha in found[:4])
        raise OptionError(
            f"the adapter '{adapter.name}' has {has}, and this run rank {config.rank} and alpha {config.alpha:g}; "
            "choose --rank and --alpha as it was trained."
        )
    for key, update in updates.items():
        a, b = update.factors()
        layers[key].lora_a, layers[key].lora_b = mx.contiguous(a.T), mx.contiguous(b.T)
    for name, array in full.items():
        layer, leaf = places[name]
        layer[leaf] = array.astype(layer[leaf].dtype)


def _refuse_magnitudes(adapter: Adapter) -> None:
    if any(update.magnitude is not None for updates in adapter.low_rank.values() for update in updates.values()):
        raise OptionError(
            f"the adapter '{adapter.name}' has magnitudes (DoRA), which are not trained here; fuse it into the model, "
            "and train that."
        )


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
    """Writes the updates as PEFT does, and what is trained in full as `trained.safetensors`; see `AdapterArrays`."""
    AdapterArrays(modules, config, base_model).write(folder)


class AdapterArrays(ModelArrays):
    """What is trained, as a checkpoint keeps it: in the files of an adapter, so that every checkpoint is one.

    Args:
        modules: component networks by name.
        config: that of `add_lora`; None where there are no updates.
        base_model: what the adapter is for, recorded for the reader.
        drawing: options of drawing that it was trained for, by name; recorded with the updates, if there are any.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        config: LoRAConfig | None,
        base_model: str | Path,
        drawing: Mapping[str, Any] | None = None,
    ) -> None:
        self._modules, self._config = modules, config
        if config is not None:
            values = _peft_config(config, str(base_model)) | ({"drawing": dict(drawing)} if drawing else {})
            self.texts = {CONFIG_FILE: json.dumps(values, indent=2) + "\n"}

    def get(self) -> Arrays:
        """The updates as PEFT has them, and what is trained in full; by file stem and name."""
        updates = {place.name: place.read() for place in _update_places(self._modules)} if self._config else {}
        trained = {f"{component}.{name}": layer[leaf] for component, name, layer, leaf in _trained(self._modules)}
        found = {WEIGHTS_FILE: updates, TRAINED_FILE: trained}
        return {Path(file).stem: arrays for file, arrays in found.items() if arrays}

    def set(self, arrays: Arrays) -> None:
        updates, trained = (arrays.get(Path(file).stem, {}) for file in (WEIGHTS_FILE, TRAINED_FILE))
        for place in _update_places(self._modules) if self._config else ():
            place.write(updates[place.name])
        for component, name, layer, leaf in _trained(self._modules):
            layer[leaf] = trained[f"{component}.{name}"]

    def write(self, folder: Path) -> None:
        """Writes the adapter into a folder, over an older one, all of its files or none; what is not needed is removed.

        Raises:
            OutputError: a file can't be written, or the disk is full.
        """
        arrays = self.get()
        with ExitStack() as stack:
            for file in (WEIGHTS_FILE, TRAINED_FILE):
                if values := arrays.get(Path(file).stem):
                    temporary = stack.enter_context(atomic_write(folder / file, overwrite=True))
                    write_tensors(temporary, values, made_for="pt" if file == WEIGHTS_FILE else "mlx")
            for file, text in self.texts.items():
                temporary = stack.enter_context(atomic_write(folder / file, overwrite=True))
                temporary.write_text(text, encoding="utf-8")
        for file in (WEIGHTS_FILE, TRAINED_FILE, CONFIG_FILE):
            if Path(file).stem not in arrays and file not in self.texts:
                (folder / file).unlink(missing_ok=True)


@dataclass(frozen=True)
class _UpdatePlace:
    """A or B of one layer, under PEFT's name and in PyTorch's layout, which is transposed."""

    name: str
    layer: Any
    attribute: str
    convolution: bool

    def read(self) -> mx.array:
        array = self.layer[self.attribute].T
        return array[..., None, None] if self.convolution else array

    def write(self, array: mx.array) -> None:
        # In the order of what was trained: with another one, products are rounded otherwise.
        self.layer[self.attribute] = mx.contiguous(array.flatten(1).T)


def _update_places(modules: Mapping[str, nn.Module]) -> Iterator[_UpdatePlace]:
    for component, (prefix, _) in _TARGETS.items():
        for path, layer in _lora_layers(modules[component]) if component in modules else ():
            for letter, attribute in (("A", "lora_a"), ("B", "lora_b")):
                name = Factor(prefix + path, letter).name
                yield _UpdatePlace(name, layer, attribute, path.endswith(_CONVOLUTIONS))


def _trained(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, nn.Module, str]]:
    """Where the arrays are that are trained in full: component, name in the checkpoint, layer and attribute.

    Of a layer with a trainable array these are all arrays: training changes others too, the running statistics of
    BatchNorm and the connector's temperature.
    """
    for component, module in modules.items():
        wrapped = {path for path, _ in _lora_layers(module)}
        for path, layer in module.named_modules():
            own = {name for name, value in layer.items() if isinstance(value, mx.array) and not name.startswith("_")}
            if path in wrapped or own.isdisjoint(layer.trainable_parameters()):
                continue
            name_in_checkpoint = path.removesuffix(".linear") if path.removesuffix(".linear") in wrapped else path
            for name in sorted(own):
                yield component, f"{name_in_checkpoint}.{name}".lstrip("."), layer, name


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, layer in module.named_modules():
        if "lora_a" in layer:
            yield path, layer


def _peft_config(config: LoRAConfig, base_model: str) -> dict[str, Any]:
    # A list is compared with the ends of all layers' names, an expression with the whole names: the DiT's would also
    # match layers of the autoencoder.
    targets = [_TARGETS[component] for component in config.components]
    expression = "|".join(re.escape(prefix) + pattern for prefix, pattern in targets)
    on_hub = None if is_folder(expand(base_model)) else split_name(base_model)
    repo, revision = on_hub or (base_model, "main")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": repo,
        **({"revision": revision} if revision != "main" else {}),
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
