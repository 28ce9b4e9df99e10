"""Adapters: what post-training changed, applied to a model's components while they load.

An adapter is a folder. `adapter_config.json` and `adapter_model.safetensors` are what the PEFT library writes and reads
for upstream's checkpoint: low-rank updates (arXiv 2106.09685) under the names of its layers. `trained.safetensors` is
ours: parts that were trained in full, as `component.name` in our names and layout. Either may be missing.

Into dense weights an update is merged, W + (alpha / rank) B A. That needs no further layers, and costs nothing when the
model runs. Quantized weights stay as they are and the update runs beside them, because quantizing the sum would lose
much of what is small in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, NotFiniteError, OptionError, format_names
from ..files import read_json
from ..models.mobileo import COMPONENTS, MobileOConfig, build, component_of, sanitize
from ..ops.finite import is_finite
from .modules import get_submodule, named_parameters, preserve_rng_state, set_submodule
from .peft_names import PREFIX, parse_factor, unwrapped_name
from .tensor_files import TensorInfo, read_header, read_tensors

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINED_FILE = "trained.safetensors"

LARGEST_SCALE = 1e4  # alpha / rank is 0.1 to 100 in practice, and what a user gives is near 1

# Ways to initialise that leave the model as it is. With the others of PEFT an adapter is the difference to another
# model than the one on disk.
_HARMLESS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """The update of one layer: scale B A.

    Attributes:
        a: (rank, inputs), or (rank, inputs, 1, 1) of what is a convolution upstream.
        b: (outputs, rank), or with two more dimensions of 1.
        rank: that the configuration says.
        scale: alpha / rank, without the user's scale.
    """

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float

    def factors(self) -> tuple[mx.array, mx.array]:
        """A (rank, inputs) and B (outputs, rank) in float32, not read yet."""
        loaded = read_tensors({"a": self.a, "b": self.b})
        a, b = (loaded[name].astype(mx.float32).flatten(1) for name in ("a", "b"))
        return a, b


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, of which only headers and the configuration have been read.

    Attributes:
        name: what the user called it.
        path: its folder, from the root of the file system.
        scale: of everything that it changes: 0 leaves the model as it is, 1 is the adapter as trained.
        config: of `adapter_config.json`; empty where there is none.
        low_rank: component to layer path to update.
        full: component to tensors that take the place of the model's, by upstream's names (PEFT's
            `modules_to_save`).
        trained: the same by our names.
        unknown: tensors that belong to nothing.
    """

    name: str
    path: Path
    scale: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)
    low_rank: dict[str, dict[str, LowRank]] = field(default_factory=dict, repr=False)
    full: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    trained: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    unknown: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: str | Path, *, scale: float = 1.0) -> Adapter:
        """Reads the configuration and the headers of an adapter.

        Raises:
            CheckpointError: the folder holds no adapter, a damaged one, or one of a kind that is not known here.
            OptionError: the scale is no number, or far too large.
        """
        if not abs(scale) <= LARGEST_SCALE:
            raise OptionError(
                f"the adapter's scale is {_short(scale)}; choose a number near 1, which is the adapter as trained."
            )
        scale = float(scale)
        path = Path(folder).expanduser().absolute()
        peft = [(path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)]
        if not any(peft) and not (path / TRAINED_FILE).is_file():
            raise CheckpointError(
                f"'{folder}' holds no adapter: a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or with {TRAINED_FILE}, "
                "is expected."
            )
        config = _read_config(path / CONFIG_FILE) if any(peft) else {}
        stored = read_header(path / WEIGHTS_FILE) if any(peft) else {}
        low_rank, full, unknown = _parse_peft_tensors(stored, config, path)
        trained: dict[str, dict[str, TensorInfo]] = {}
        for key, info in (read_header(path / TRAINED_FILE) if (path / TRAINED_FILE).is_file() else {}).items():
            component, _, name = key.partition(".")
            if component in COMPONENTS:
                trained.setdefault(component, {})[name] = info
            else:
                unknown.append(key)
        return cls(str(folder), path, scale, config, low_rank, full, trained, tuple(unknown))

    @property
    def components(self) -> set[str]:
        """What it changes."""
        return {*self.low_rank, *self.full, *self.trained}

    @preserve_rng_state()
    def check(self, checkpoint: Checkpoint) -> None:
        """Compares all names and shapes with those of a model; no weights are read.

        Raises:
            CheckpointError: the adapter changes nothing, or is for another model; all that does not fit is listed.
        """
        if not self.components and not self.unknown:
            raise CheckpointError(f"The adapter '{self.name}' changes nothing: there are no tensors in it.")
        unknown, wrong, missing = list(self.unknown), [], []
        for component in sorted(self.components):
            module = build(component, checkpoint.config)
            there = checkpoint.has(component)
            linears = {path: x.weight.shape for path, x in module.named_modules() if type(x) is nn.Linear and there}
            updates = self.low_rank.get(component, {})
            for path, pair in updates.items():
                if path not in linears:
                    unknown += [pair.a.key, pair.b.key]
                    continue
                outputs, inputs = linears[path]
                for info, shape in ((pair.a, (pair.rank, inputs)), (pair.b, (outputs, pair.rank))):
                    if info.shape not in (shape, (*shape, 1, 1)):
                        wrong.append(f"{info.key} {info.shape} instead of {shape}")
            if updates:
                missing += [f"{component}.{path}" for path in linears if self._targets(path) and path not in updates]
            shapes = {name: array.shape for name, array in named_parameters(module).items() if there}
            for name, array in self._replacements(component, checkpoint.config).items():
                if name not in shapes:
                    unknown.append(f"{component}.{name}")
                elif array.shape != shapes[name]:
                    wrong.append(f"{component}.{name} {array.shape} instead of {shapes[name]}")
        problems = [
            f"{kind} {format_names(names)}"
            for kind, names in (
                ("the model does not have", unknown),
                ("of the wrong shape are", wrong),
                ("the adapter lacks", missing),
            )
            if names
        ]
        if problems:
            base = self.config.get("base_model_name_or_path")
            made_for = f" (it was made for '{base}')" if base else ""
            raise CheckpointError(
                f"The adapter '{self.name}' is for another model than '{checkpoint.name}'{made_for}: "
                f"{'; '.join(problems)}."
            )

    def apply(self, component: str, module: nn.Module, config: MobileOConfig) -> nn.Module:
        """Changes a loaded component. What is merged becomes float32, so that it is rounded once, by the caller.

        Args:
            component: its name.
            module: the network with its weights, dense or quantized.
            config: the model's.

        Returns:
            the module; another one if it was a single layer itself.

        Raises:
            NotFiniteError: a weight that is quantized again is not finite, which quantizing would hide.
        """
        if self.scale == 0:
            return module  # to the bit: a layer beside an update takes part in fewer shortcuts, and rounds otherwise
        for name, array in self._replacements(component, config).items():
            if not _replace(module, name, array, self.scale):
                raise NotFiniteError(
                    component, f"the adapter '{self.name}' holds NaN or infinity in {name}; get it or train it again"
                )
        for path, pair in self.low_rank.get(component, {}).items():
            layer = get_submodule(module, path)
            a, b = pair.factors()
            scale = self.scale * pair.scale
            if isinstance(layer, nn.QuantizedLinear):
                module = set_submodule(module, path, AdaptedLinear(layer, a.T, scale * b.T))
            else:
                layer.weight = layer.weight.astype(mx.float32) + scale * (b @ a)
        return module

    def _targets(self, path: str) -> bool:
        """Whether the configuration says that a layer of an adapted component is adapted, as far as that is clear."""
        targets = self.config.get("target_modules")
        if (
            not isinstance(targets, list)
            or self.config.get("layers_to_transform")
            or self.config.get("exclude_modules")
        ):
            return False
        return any(path == target or path.endswith(f".{target}") for target in targets)

    def _replacements(self, component: str, config: MobileOConfig) -> dict[str, mx.array]:
        """The tensors that replace the component's, by our names; not read yet."""
        upstream = read_tensors(self.full.get(component, {}))
        try:
            ours = sanitize(component, upstream, config)
        except (ValueError, IndexError) as error:
            raise CheckpointError(
                f"The adapter '{self.name}' holds tensors of {component} that have a wrong shape ({error})."
            ) from error
        return ours | read_tensors(self.trained.get(component, {}))


class AdaptedLinear(nn.Module):
    """A quantized linear layer with a low-rank update beside it.

    mlx-lm's `LoRALinear`, which training uses, would do; but importing mlx-lm takes seconds, and drawing does without.

    Args:
        linear: the layer.
        a: (inputs, rank).
        b: (rank, outputs), times the scale.
    """

    def __init__(self, linear: nn.QuantizedLinear, a: mx.array, b: mx.array):
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.a) @ self.b


def _replace(module: nn.Module, name: str, new: mx.array, scale: float) -> bool:
    """Moves a parameter by `scale` of the way to `new`; a quantized weight is quantized again, as it was.

    Returns:
        whether what was quantized is finite; True where nothing was.
    """
    path, _, leaf = name.rpartition(".")
    layer = get_submodule(module, path)
    old = layer[leaf]
    if leaf != "weight" or not isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        layer[leaf] = _between(old, new, scale)
        return True
    how = {"group_size": layer.group_size, "bits": layer.bits}
    if scale != 1:
        old = mx.dequantize(old, layer.scales, layer.biases, **how)
    dense = _between(old, new, scale)
    finite = is_finite(dense)
    layer.weight, layer.scales, layer.biases = mx.quantize(dense, **how)
    del dense
    mx.eval(layer.parameters())  # so that one dense weight at a time is in memory
    return finite


def _between(old: mx.array, new: mx.array, scale: float) -> mx.array:
    if scale == 1:
        return new
    old = old.astype(mx.float32)
    return old + scale * (new.astype(mx.float32) - old)


def _read_config(path: Path) -> dict[str, Any]:
    """PEFT's configuration.

    Raises:
        CheckpointError: it is missing or damaged, or asks for something else than plain LoRA.
    """
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"'{path}' describes an adapter of type {kind!r}, and only LORA can be applied.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"'{path}' has r = {rank!r} and lora_alpha = {alpha!r}, which can't be.")
    odd = [name for name in ("use_dora", "use_qalora", "lora_bias", "layer_replication") if config.get(name)]
    if config.get("init_lora_weights") not in _HARMLESS:
        odd.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if odd:
        raise CheckpointError(f"'{path}' asks for {', '.join(odd)}, and only plain LoRA can be applied.")
    return config


def _parse_peft_tensors(
    stored: Mapping[str, TensorInfo], config: Mapping[str, Any], path: Path
) -> tuple[dict[str, dict[str, LowRank]], dict[str, dict[str, TensorInfo]], list[str]]:
    """PEFT's tensors as low-rank updates, whole tensors and what is neither.

    Raises:
        CheckpointError: a layer has one factor of its update and lacks the other.
    """
    factors: dict[str, dict[str, TensorInfo]] = {}
    full: dict[str, dict[str, TensorInfo]] = {}
    unknown = []
    for key, info in stored.items():
        name = unwrapped_name(key)
        factor = parse_factor(name)
        found = component_of(f"{factor.layer}.weight" if factor else name)
        odd = factor.adapter is not None if factor else ".lora_" in name
        if not key.startswith(PREFIX) or found is None or odd:
            unknown.append(key)
        elif factor:
            factors.setdefault(factor.layer, {})[factor.letter] = info
        else:
            full.setdefault(found[0], {})[found[1]] = info
    if halves := [name for name, pair in factors.items() if len(pair) == 1]:
        raise CheckpointError(f"'{path / WEIGHTS_FILE}' has only one of lora_A and lora_B of {format_names(halves)}.")
    low_rank: dict[str, dict[str, LowRank]] = {}
    for name, pair in factors.items():
        component, tensor = component_of(f"{name}.weight") or ("", "")
        try:
            rank = _pattern(config.get("rank_pattern"), name, config["r"])
            alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            if not abs(scale) <= LARGEST_SCALE:
                raise ValueError(f"{_short(alpha)} at rank {_short(rank)}")
        except (TypeError, ValueError, ArithmeticError, AttributeError, re.error) as error:
            raise CheckpointError(f"'{path / CONFIG_FILE}' has no valid rank or alpha for {name} ({error}).") from error
        low_rank.setdefault(component, {})[tensor.rpartition(".")[0]] = LowRank(pair["A"], pair["B"], rank, scale)
    return low_rank, full, unknown


def _short(number: float) -> str:
    """A number for a message; whole numbers of any size are short, too."""
    return f"{number:.4g}" if isinstance(number, float) or abs(number) < 2**63 else "beyond 2**63"


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """A setting that PEFT can have for some layers: the first expression counts that matches the name's end."""
    return next((v for k, v in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({k})", name)), default)
