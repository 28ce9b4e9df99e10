"""Checkpoints: opened by their headers alone, loaded strictly, one component at a time.

Two layouts are read. Upstream's is a `config.json` that describes the language model, and one or several safetensors
files for everything. Ours is a `config.json` that describes all components, and one safetensors file for each, with
the tensors already in MLX's layout (written by `mobileo_mlx.checkpoints.convert`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError, OptionError
from ..models.mobileo import COMPONENTS, MobileOConfig, build, component_of, sanitize
from . import hub
from .quantize import BITS, QuantizeSpec, quantized_skeleton
from .quantize import quantize as quantize_module
from .tensor_files import TensorInfo, read_header, read_json, read_tensors, weight_files

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .adapters import Adapter

FORMAT_VERSION = 1
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_STORED = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
# merge_lora.py of the original can leave the unmerged state dict beside the merged one, under this prefix.
_LORA_PREFIX = "base_model.model."
_LORA_FACTOR = re.compile(r"\.lora_[AB](\.\w+)?\.weight$")
# A checkpoint may do without the others: `lm_head` where it is tied to the embedding.
_REQUIRED = tuple(name for name in COMPONENTS if name != "lm_head")
_EARLY_CHIP = re.compile(r"Apple (M[12]|A\d|A1[0-6])\b")  # A17 is the first that computes as M3 does
_LISTED = 20  # names of one kind in an error


def parse_dtype(name: str) -> mx.Dtype:
    """float32, float16 or bfloat16.

    Raises:
        OptionError: another name.
    """
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r} is unknown; there are {', '.join(DTYPES)}.")
    return DTYPES[name]


def default_dtype(stored: mx.Dtype) -> mx.Dtype:
    """The dtype to compute in, where none is asked for.

    float32 on a CPU, whose BLAS knows no half precision. float16 on Apple's M1 and M2, which emulate bfloat16, and
    bfloat16 on later ones, whose range nothing can leave. On another GPU the checkpoint's.
    """
    if mx.default_device() == mx.cpu:
        return mx.float32
    chip = _gpu_name()
    if not chip.startswith("Apple"):
        return stored
    return mx.float16 if _EARLY_CHIP.match(chip) else mx.bfloat16


def _gpu_name() -> str:
    """Such as "Apple M2 Pro"; empty where the backend does not tell."""
    try:
        return str(mx.device_info(mx.default_device()).get("device_name", ""))
    except (AttributeError, RuntimeError, ValueError):
        return ""


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """All parameters of a module, frozen ones and running statistics too, by their dotted names."""
    return tree_flatten(module.parameters(), destination={})  # type: ignore[return-value]


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Building a network draws random weights; what a user seeded with `mx.random.seed` stays as it was."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. Only headers and configurations have been read."""

    name: str  # what the user called it
    location: str  # what finds it from any folder: its absolute path, or its name where it is bundled or on the hub
    path: Path
    layout: Literal["upstream", "mobileo-mlx"]
    config: MobileOConfig
    tied: bool  # whether the embedding serves as lm_head
    quantization: dict[str, QuantizeSpec] = field(default_factory=dict)  # of the components stored so
    _tensors: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    _problems: dict[str, list[tuple[str, str]]] = field(default_factory=dict, repr=False)  # of those looked at

    @classmethod
    def open(cls, model: str | Path, *, progress: bool = False, partial: bool = False) -> Checkpoint:
        """Finds a model and reads its headers and configuration.

        Args:
            model: a bundled name, a folder, or a repository on the hub; see `mobileo_mlx.checkpoints.hub.find`.
            progress: whether a download draws its bars on standard error.
            partial: whether a folder in upstream's layout may lack components.

        Raises:
            DownloadError: the repository is neither cached nor reachable.
            CheckpointError: the folder holds no model, a file is damaged, or there are tensors of no component.
            ConfigError: the configuration lacks something.
        """
        path = hub.find(model, progress=progress)
        config = read_json(path / "config.json")
        location = hub.location(model)
        if config.get("format") == hub.OUR_FORMAT:
            return _open_ours(str(model), location, path, config)
        return _open_upstream(str(model), location, path, config, partial)

    def tensors(self, component: str) -> dict[str, TensorInfo]:
        """What is stored for a component, by name: upstream's names without their prefix, or ours.

        Raises:
            CheckpointError: nothing is.
        """
        if component not in self._tensors:
            raise CheckpointError(
                f"'{self.path}' has no {self._where(component)}, which this needs; get the model again."
            )
        return self._tensors[component]

    def has(self, component: str) -> bool:
        """Whether something is stored for a component."""
        return component in self._tensors

    def stored_dtype(self, component: str) -> mx.Dtype:
        """The dtype that most of a component's floating-point data has."""
        nbytes = dict.fromkeys(_STORED, 0)
        for info in self.tensors(component).values():
            if info.dtype in nbytes:
                nbytes[info.dtype] += info.nbytes
        return _STORED[max(nbytes, key=lambda dtype: nbytes[dtype])]

    @preserve_rng_state()
    def check(self, *components: str) -> None:
        """Compares names and shapes with those that the configuration asks for. No weights are read.

        Raises:
            CheckpointError: all that is missing, unexpected or of another shape, in all of the components.
        """
        for component in components:
            if component not in self._problems:
                there = component in self._tensors
                self._problems[component] = (
                    self._build_and_read(component)[2] if there else [("absent", self._where(component))]
                )
        self._raise_problems([problem for component in components for problem in self._problems[component]])

    @preserve_rng_state()
    def load(
        self,
        component: str,
        *,
        dtype: mx.Dtype | None = None,
        quantize: QuantizeSpec | None = None,
        adapter: Adapter | None = None,
    ) -> nn.Module:
        """Builds a component with its weights, in evaluation mode.

        Weights are read from disk when they are first used; only those that are quantized are read here, layer by
        layer, so that little more than the quantized weights is ever in memory.

        Args:
            component: one of `COMPONENTS`.
            dtype: of the floating-point weights; by default `default_dtype` of what is stored.
            quantize: bits for the linear layers and embeddings of a component that is not stored quantized.
            adapter: applied last, so that it does the same to weights quantized here as to those stored quantized.

        Raises:
            CheckpointError: the component is not there, or its tensors are not those that the configuration asks
                for; all that are missing, unexpected or of another shape are listed.
            OptionError: the component is stored quantized with other bits.
        """
        self.tensors(component)
        stored = self.quantization.get(component)
        if stored is not None and quantize is not None and quantize != stored:
            raise OptionError(
                f"{component} of '{self.path}' is quantized to {stored.bits} bits already; start from the original."
            )
        module, weights, problems = self._build_and_read(component)
        self._raise_problems(problems)
        module.load_weights(list(weights.items()))
        del weights
        if quantize is not None and stored is None:
            module = quantize_module(module, quantize)
        if adapter is not None:
            module = adapter.apply(component, module, self.config)
        module.set_dtype(dtype or default_dtype(self.stored_dtype(component)))
        return module.eval()

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: its files are missing or malformed.
        """
        from ..tokenizer import Tokenizer

        return Tokenizer.load(self.path)

    def _where(self, component: str) -> str:
        return f"{component}.safetensors" if self.layout == "mobileo-mlx" else f"tensors of {component}"

    def _build_and_read(self, component: str) -> tuple[nn.Module, dict[str, mx.array], list[tuple[str, str]]]:
        """A component's network, its weights, not read yet, with our names and in our layout, and what does not fit.

        A problem is its kind and the name of what has it.
        """
        weights, odd = self._read(component)
        module = build(component, self.config)
        if component in self.quantization:
            module = quantized_skeleton(module, weights, self.quantization[component])
        expected = {name: array.shape for name, array in named_parameters(module).items()}
        found = {name: array.shape for name, array in weights.items()}
        problems = [("of the wrong shape", f"{component}.{name} {shape}") for name, shape in odd.items()]
        problems += [("missing", f"{component}.{name}") for name in expected if name not in found and name not in odd]
        problems += [("unexpected", f"{component}.{name}") for name in found if name not in expected]
        problems += [
            ("of the wrong shape", f"{component}.{name} {found[name]} instead of {shape}")
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        return module, weights, problems

    def _read(self, component: str) -> tuple[dict[str, mx.array], dict[str, tuple[int, ...]]]:
        """The weights, and the shapes of those that lack the dimensions that our layout asks for."""
        weights = read_tensors(self.tensors(component))
        if self.layout == "mobileo-mlx":
            return weights, {}
        try:
            return sanitize(component, weights, self.config), {}
        except (ValueError, IndexError):
            fitting: dict[str, mx.array] = {}
            odd: dict[str, tuple[int, ...]] = {}
            for name, array in weights.items():
                try:
                    fitting |= sanitize(component, {name: array}, self.config)
                except (ValueError, IndexError):
                    odd[name] = array.shape
            return fitting, odd

    def _raise_problems(self, problems: Iterable[tuple[str, str]]) -> None:
        """Raises CheckpointError if there are any."""
        kinds: dict[str, list[str]] = {"absent": [], "missing": [], "unexpected": [], "of the wrong shape": []}
        for kind, name in problems:
            kinds[kind].append(name)
        told = [f"{kind} are {listed(names)}" for kind, names in kinds.items() if names]
        if told:
            raise CheckpointError(
                f"'{self.path}' does not fit its configuration: {'; '.join(told)}; get the model again."
            )


def listed(names: Iterable[str]) -> str:
    """The names for an error: sorted, and the first ones only where there are very many."""
    names = sorted(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _open_ours(name: str, location: str, path: Path, config: dict[str, Any]) -> Checkpoint:
    source = str(path / "config.json")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{source}' has format version {config.get('format_version')!r}, and this program reads "
            f"{FORMAT_VERSION}; update mobileo-mlx."
        )
    files = {component: path / f"{component}.safetensors" for component in COMPONENTS}
    tensors = {component: read_header(file) for component, file in files.items() if file.is_file()}
    quantization = {}
    for component, entry in (config.get("quantization") or {}).items():
        try:
            quantization[component] = QuantizeSpec(int(entry["bits"]), int(entry["group_size"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{source}' lacks bits or group_size for {component!r}.") from error
        if quantization[component].bits not in BITS or quantization[component].group_size not in (32, 64, 128):
            raise CheckpointError(f"'{source}' has a quantization of {component!r} that MLX does not have.")
    for component, infos in tensors.items():
        if component not in quantization and any(key.endswith(".scales") for key in infos):
            raise CheckpointError(f"'{source}' does not say with how many bits {component!r} is quantized.")
    _check_dtypes(path, tensors)
    # Without lm_head the embedding serves, but only where the model was written so.
    tied = "lm_head" not in tensors and "lm_head" not in (config.get("components") or ())
    described = MobileOConfig.from_dict(config, source)
    return Checkpoint(name, location, path, "mobileo-mlx", described, tied, quantization, tensors)


def _open_upstream(name: str, location: str, path: Path, config: dict[str, Any], partial: bool) -> Checkpoint:
    infos: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        infos |= read_header(file)
    # A prefixed tensor counts only where there is none of the plain name, which is then the merged one.
    plain = {key: info for key, info in infos.items() if not key.startswith(_LORA_PREFIX)}
    named = dict(plain)
    for key, info in infos.items():
        # Where PEFT wraps a layer, the layer's own tensors move one level down.
        name = key.removeprefix(_LORA_PREFIX).replace(".base_layer.", ".")
        if key not in plain and _LORA_FACTOR.sub(".weight", name) not in plain:
            named[name] = info
    tensors: dict[str, dict[str, TensorInfo]] = {}
    unknown = []
    for key, info in named.items():
        if (found := component_of(key)) is None:
            unknown.append(info.key)
        else:
            tensors.setdefault(found[0], {})[found[1]] = info
    lacking = [component for component in _REQUIRED if component not in tensors]
    if lacking and not partial:
        raise CheckpointError(f"'{path}' is no Mobile-O model: it has no tensors of {', '.join(lacking)}.")
    if unknown:
        raise CheckpointError(f"'{path}' holds tensors that are not Mobile-O's: {listed(unknown)}.")
    _check_dtypes(path, tensors)
    shapes = {key: info.shape for key, info in named.items()}
    source = str(path / "config.json")
    generation = path / "generation_config.json"
    try:
        described = MobileOConfig.from_upstream(
            config,
            shapes,
            dit=_diffusion(path, "transformer/config.json"),
            vae=_diffusion(path, "vae/config.json"),
            scheduler=_diffusion(path, "scheduler/scheduler_config.json"),
            generation_config=read_json(generation) if generation.is_file() else None,
            source=source,
        )
    except (KeyError, ValueError, IndexError) as error:
        # Widths are read from the tensors, so a missing or mis-shaped one can show here first.
        raise CheckpointError(
            f"'{path}' lacks tensors that tell its dimensions, or they have odd shapes ({error}); get the model again."
        ) from error
    return Checkpoint(name, location, path, "upstream", described, "lm_head" not in tensors, {}, tensors)


def _diffusion(path: Path, name: str) -> dict[str, Any] | None:
    """A configuration of diffusers from the folder `diffusion` inside the model's folder or beside it."""
    for folder in (path / "diffusion", path.parent / "diffusion"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return None


def _check_dtypes(path: Path, tensors: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    known = {*_STORED, "U32", "I64"}  # quantized weights; BatchNorm's counters
    odd = [
        f"{component}.{key} ({info.dtype})"
        for component, infos in tensors.items()
        for key, info in infos.items()
        if info.dtype not in known
    ]
    if odd:
        raise CheckpointError(f"'{path}' holds tensors that are neither float32, float16 nor bfloat16: {listed(odd)}.")
