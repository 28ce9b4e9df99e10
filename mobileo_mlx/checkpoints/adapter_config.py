"""`adapter_config.json`, of the PEFT library or of mlx-lm: checked key by key, and what it says about a layer.

Layers have their names in upstream's checkpoint here, such as `model.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, format_names
from ..files import read_json
from .name_patterns import Pattern, PatternError

CONFIG_FILE = "adapter_config.json"
LARGEST_SCALE = 1e4  # alpha / rank is 0.1 to 100 in practice, and what a user gives is near 1

_LARGEST_RANK = 2**16  # an update of a higher rank than a layer is wide makes no sense
_LARGEST_ALPHA = 1e9
_MOST_WORK = 2 * 10**7  # characters of expressions times layers; a model's every layer by name is a tenth

# Ways to initialise that leave the model as it is. With the others of PEFT an adapter is the difference to another
# model than the one on disk.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal")

_Check = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(check, value))


def _is_map(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(check, value.values()))


def _is_rank(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= _LARGEST_RANK


def _is_alpha(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and abs(value) <= _LARGEST_ALPHA


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_RANK: _Check = (_is_rank, f"a whole number from 1 to {_LARGEST_RANK}")
_ALPHA: _Check = (_is_alpha, f"a number of at most {_LARGEST_ALPHA:,.0f}")
_TEXT: _Check = (_is_text, "a text")
_TEXTS: _Check = (lambda value: _is_list(value, _is_text), "a list of texts")
_TEXT_OR_TEXTS: _Check = (lambda value: _is_text(value) or _is_list(value, _is_text), "a text or a list of texts")
_SWITCH: _Check = (lambda value: isinstance(value, bool), "true or false")
_WHOLE: _Check = (_is_whole, "a whole number")
_MAP: _Check = (lambda value: isinstance(value, dict), "a map")

_PEFT: dict[str, _Check] = {
    "peft_type": _TEXT,
    "base_model_name_or_path": _TEXT,
    "r": _RANK,
    "lora_alpha": _ALPHA,
    "rank_pattern": (lambda value: _is_map(value, _is_rank), f"a map from texts to {_RANK[1].removeprefix('a ')}s"),
    "alpha_pattern": (lambda value: _is_map(value, _is_alpha), f"a map from texts to {_ALPHA[1].removeprefix('a ')}"),
    "use_rslora": _SWITCH,
    "use_dora": _SWITCH,
    "bias": _TEXT,
    "target_modules": _TEXT_OR_TEXTS,
    "exclude_modules": _TEXT_OR_TEXTS,
    "modules_to_save": _TEXTS,
    "layers_pattern": _TEXT_OR_TEXTS,
    "layers_to_transform": (
        lambda value: _is_whole(value) or _is_list(value, _is_whole),
        "a whole number or a list of them",
    ),
    "init_lora_weights": (lambda value: isinstance(value, bool | str), "true, false or a text"),
    "drawing": _MAP,  # ours, which PEFT passes over
}
_MLX_LM: dict[str, _Check] = {
    "model": _TEXT,
    "fine_tune_type": _TEXT,
    "num_layers": _WHOLE,
    "lora_parameters": _MAP,
}
_MLX_LM_LORA: dict[str, _Check] = {"rank": _RANK, "scale": _ALPHA, "keys": _TEXTS}

# Settings of PEFT that change what an adapter does to a model, and can't be applied.
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
# Those that matter only when it is trained, or to PEFT itself.
_WITHOUT_EFFECT = (
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
)


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT says about an adapter.

    Attributes:
        path: of the file.
        values: its content, of which every key that is used here has the right type.
        notes: what a user should know.
    """

    path: Path
    values: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def base_model(self) -> str | None:
        """What the adapter was made for."""
        return self.values.get("base_model_name_or_path")

    @property
    def dora(self) -> bool:
        """Whether each updated layer has a vector of magnitudes (arXiv 2402.09353)."""
        return bool(self.values.get("use_dora"))

    @property
    def drawing(self) -> Mapping[str, Any]:
        """The options of drawing that it was trained for, by name and not checked; empty for most adapters."""
        return self.values.get("drawing") or {}

    def rank_and_scale(self, layer: str) -> tuple[int, float]:
        """Of the update of a layer; the scale is alpha / rank.

        Raises:
            CheckpointError: an expression is not understood, or the scale is too large.
        """
        rank, alpha = self._setting("rank_pattern", layer, "r"), self._setting("alpha_pattern", layer, "lora_alpha")
        scale = alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)
        if abs(scale) > LARGEST_SCALE:
            raise CheckpointError(
                f"'{self.path}' asks for alpha {alpha:.4g} at rank {rank} for {layer}, and alpha / rank can be "
                f"{LARGEST_SCALE:,.0f} at most."
            )
        return rank, float(scale)

    def check_work(self, layers: int) -> None:
        """Refuses expressions that would take long to compare with so many layers.

        Raises:
            CheckpointError: see above.
        """
        for key in ("rank_pattern", "alpha_pattern"):
            if layers * sum(map(len, self.values.get(key) or {})) > _MOST_WORK:
                raise CheckpointError(f"'{self.path}' has too many expressions in {key} for {layers} layers.")

    def targets(self, layer: str, num_layers: int) -> bool:
        """Whether the configuration says that a layer of an adapted component is adapted, as far as that is clear.

        Args:
            layer: its name.
            num_layers: of the language model, which only mlx-lm's configuration refers to.
        """
        try:
            return self._chosen("target_modules", layer) and not self._left_out(layer) and self._transformed(layer)
        except PatternError:
            return False

    def _setting(self, key: str, layer: str, default: str) -> Any:
        """A setting that some layers can have: the first expression counts that matches the name's end."""
        for text, value in (self.values.get(key) or {}).items():
            try:
                if _pattern(text).matches_end(layer):
                    return value
            except PatternError as error:
                raise CheckpointError(f"'{self.path}' has {_short(text)} in {key}, which {error}.") from error
        return self.values[default]

    def _chosen(self, key: str, layer: str) -> bool:
        """Whether a layer is among those of a key: one expression for the whole name, or ends of names."""
        value = self.values.get(key)
        if isinstance(value, str):
            return _pattern(value).matches(layer)
        return any(layer == end or layer.endswith(f".{end}") for end in value or ())

    def _left_out(self, layer: str) -> bool:
        saved = self.values.get("modules_to_save") or ()
        return self._chosen("exclude_modules", layer) or any(_pattern(text).matches_parts(layer) for text in saved)

    def _transformed(self, layer: str) -> bool:
        """Whether a layer is in one of the blocks that are adapted, where only some are."""
        wanted, patterns = self.values.get("layers_to_transform"), self.values.get("layers_pattern") or ()
        if wanted is None or wanted == [] or isinstance(self.values.get("target_modules"), str):
            return True
        numbers: list[int | None]
        if patterns:
            texts = [patterns] if isinstance(patterns, str) else patterns
            numbers = [_pattern(text).number_behind(layer) for text in texts]
        else:  # the first number that has two names in front of it
            numbers = [int(part[:9]) for part in layer.split(".")[2:-1] if part.isdecimal()]
        number = next((number for number in numbers if number is not None), None)
        return number in (wanted if isinstance(wanted, list) else [wanted])


@dataclass(frozen=True)
class MlxLmConfig:
    """What mlx-lm says about an adapter; the attributes are those of `PeftConfig`."""

    path: Path
    values: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    drawing: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def base_model(self) -> str | None:
        """What the adapter was made for."""
        return self.values.get("model")

    @property
    def full(self) -> bool:
        """Whether whole tensors were trained, and no updates."""
        return self.values.get("fine_tune_type") == "full"

    @property
    def dora(self) -> bool:
        """As of `PeftConfig`."""
        return self.values.get("fine_tune_type") == "dora"

    def rank_and_scale(self, layer: str) -> tuple[int, float]:
        """Of the update of every layer."""
        parameters = self.values["lora_parameters"]
        return parameters["rank"], float(parameters["scale"])

    def targets(self, layer: str, num_layers: int) -> bool:
        """As of `PeftConfig`."""
        parameters, count = self.values.get("lora_parameters") or {}, self.values.get("num_layers")
        if (keys := parameters.get("keys")) is None or count is None:
            return False
        block = layer.removeprefix("model.layers.")
        number, _, name = block.partition(".")
        adapted = number.isdecimal() and int(number[:9]) >= num_layers - (count if count > 0 else num_layers)
        return layer in keys or (block != layer and adapted and name in keys)


def read_config(path: Path) -> PeftConfig | MlxLmConfig:
    """The configuration of an adapter.

    Raises:
        CheckpointError: it is missing or damaged, has a value that can't be, or asks for something that can't be
            applied.
    """
    values = read_json(path)
    if "peft_type" not in values and ("lora_parameters" in values or "fine_tune_type" in values):
        return _read_mlx_lm(path, values)
    return _read_peft(path, values)


def _read_peft(path: Path, values: dict[str, Any]) -> PeftConfig:
    if values.get("peft_type") != "LORA":
        kind = _short(values.get("peft_type"))
        raise CheckpointError(f"'{path}' describes an adapter of type {kind}, and only LORA can be applied.")
    _check(path, values, _PEFT, required=("r", "lora_alpha"))
    odd = [key for key in _REFUSED if values.get(key)]
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init not in _HARMLESS_INITS:
        odd.append(f"init_lora_weights {_short(init)}")
    if odd:
        raise CheckpointError(f"'{path}' asks for {', '.join(odd)}, which can't be applied.")
    known = {*_PEFT, *_REFUSED, *_WITHOUT_EFFECT}
    unknown = [key for key, value in values.items() if value and key not in known]
    note = f"'{path}' has settings that are not known here and are left out: {format_names(unknown)}."
    return PeftConfig(path, values, (note,) if unknown else ())


def _read_mlx_lm(path: Path, values: dict[str, Any]) -> MlxLmConfig:
    _check(path, values, _MLX_LM)
    kind = values.setdefault("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise CheckpointError(f"'{path}' has fine_tune_type {_short(kind)}, and only lora, dora and full are known.")
    if kind != "full":
        _check(path, values, _MLX_LM, required=("lora_parameters",))
        _check(path, values["lora_parameters"], _MLX_LM_LORA, required=("rank", "scale"), inside="lora_parameters.")
        if abs(scale := values["lora_parameters"]["scale"]) > LARGEST_SCALE:
            raise CheckpointError(f"'{path}' has lora_parameters.scale = {scale}; {LARGEST_SCALE:,.0f} is the limit.")
    return MlxLmConfig(path, values)


def _check(
    path: Path, values: Mapping[str, Any], known: Mapping[str, _Check], required: tuple[str, ...] = (), inside: str = ""
) -> None:
    """Compares values with their types. What is missing or null has PEFT's default, unless it is required."""
    for key, (check, what) in known.items():
        value = values.get(key)
        if (value is not None or key in required) and not check(value):
            raise CheckpointError(f"'{path}' has {inside}{key} = {_short(value)}; it has to be {what}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> Pattern:
    return Pattern(text)
