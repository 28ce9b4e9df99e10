"""Checkpoints: opened by their headers alone, loaded strictly, one component at a time.

Two layouts are read. Upstream's is a `config.json` that describes the language model, and one or several safetensors
files for everything. Ours is a `config.json` that describes all components, and one safetensors file for each, with
the tensors already in MLX's layout (written by `mobileo_mlx.checkpoints.convert`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, shown
from ..errors import CheckpointError, ConfigError, format_names
from ..files import kind_of, read_json
from ..models.mobileo import COMPONENTS, MobileOConfig, block_counts, build, component_of, sanitize
from . import hub
from .modules import named_parameters, preserve_rng_state
from .peft_names import PREFIX, parse_factor, unwrapped_name
from .quantize import QuantizeSpec, quantized_skeleton
from .tensor_files import READ_AS, TensorInfo, check_dtypes, placeholders, read_header, read_headers, read_tensors

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

FORMAT_VERSION = 1
# A checkpoint may do without the others: `lm_head` where it is tied to the embedding.
_REQUIRED = tuple(name for name in COMPONENTS if name != "lm_head")


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
        """The dtype that most of a component's floating-point data is read as."""
        nbytes = dict.fromkeys(READ_AS.values(), 0)
        for info in self.tensors(component).values():
            if info.dtype in READ_AS:
                nbytes[READ_AS[info.dtype]] += info.nbytes
        return getattr(mx, max(nbytes, key=lambda dtype: nbytes[dtype]))

    @preserve_rng_state()
    def check(self, *components: str, extra: bool = False) -> None:
        """Compares names and shapes with those that the configuration asks for. No weights are read.

        Args:
            components: to look at.
            extra: whether there may be tensors that nothing asks for.

        Raises:
            CheckpointError: all that is missing, unexpected or of another shape, in all of the components.
        """
        for component in components:
            if component not in self._problems:
                if component in self._tensors:
                    problems = self._build(component, placeholders(self.tensors(component)))[2]
                else:
                    problems = [("absent", self._where(component))]
                self._problems[component] = problems
        found = [problem for component in components for problem in self._problems[component]]
        self._raise_problems([(kind, name) for kind, name in found if not (extra and kind == "unexpected")])

    def extra(self, *components: str) -> list[str]:
        """The tensors that nothing asks for, of components that were checked."""
        found = [problem for component in components for problem in self._problems[component]]
        return sorted(name for kind, name in found if kind == "unexpected")

    @preserve_rng_state()
    def network(self, component: str) -> nn.Module:
        """Builds a component with its weights as they are stored, which are read from disk when they are first used.

        Raises:
            CheckpointError: the component is not there, or its tensors are not those that the configuration asks
                for; all that are missing, unexpected or of another shape are listed.
        """
        module, weights, problems = self._build(component, self._read(component))
        self._raise_problems(problems)
        module.load_weights(list(weights.items()))
        return module

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: its files are missing or malformed, or it is that of another model.
        """
        from ..tokenizer import Tokenizer

        return Tokenizer.load(self.path, rows=self.config.llm.vocab_size)

    def _where(self, component: str) -> str:
        return f"{component}.safetensors" if self.layout == "mobileo-mlx" else f"tensors of {component}"

    def _read(self, component: str) -> dict[str, mx.array]:
        """The tensors as they are stored, not read yet."""
        return read_tensors(self.tensors(component))

    def _build(
        self, component: str, stored: dict[str, mx.array]
    ) -> tuple[nn.Module, dict[str, mx.array], list[tuple[str, str]]]:
        """A component's network, its weights with our names and in our layout, and what does not fit.

        A problem is its kind and the name of what has it.
        """
        weights, odd = self._laid_out(component, stored)
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

    def _laid_out(
        self, component: str, weights: dict[str, mx.array]
    ) -> tuple[dict[str, mx.array], dict[str, tuple[int, ...]]]:
        """The weights, and the shapes of those that lack the dimensions that our layout asks for."""
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
        mismatches = [f"{kind} are {format_names(names)}" for kind, names in kinds.items() if names]
        if mismatches:
            raise CheckpointError(
                f"'{self.path}' does not fit its configuration: {'; '.join(mismatches)}; get the model again."
            )


def _open_ours(name: str, location: str, path: Path, config: dict[str, Any]) -> Checkpoint:
    source = str(path / "config.json")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{source}' has format version {shown(config.get('format_version'))}, and this program reads "
            f"{FORMAT_VERSION}; update mobileo-mlx."
        )
    described = MobileOConfig.from_dict(config, source)
    stored = _Stored.from_dict(config, source)
    quantization = {}
    for component, entry in _quantization_entries(config, source).items():
        spec = _Quantization.from_dict(entry, f"the quantization of {component!r} in {source}")
        quantization[component] = QuantizeSpec(spec.bits, spec.group_size)
    files = {component: path / f"{component}.safetensors" for component in COMPONENTS}
    tensors = {component: read_header(file) for component, file in files.items() if kind_of(file)}
    for component, infos in tensors.items():
        if component not in quantization and any(key.endswith(".scales") for key in infos):
            raise CheckpointError(f"'{source}' does not say with how many bits {component!r} is quantized.")
    check_dtypes(path, _by_full_name(tensors))
    _check_blocks(path, described, tensors)
    # Without lm_head the embedding serves, but only where the model was written so.
    tied = "lm_head" not in tensors and "lm_head" not in stored.components
    return Checkpoint(name, location, path, "mobileo-mlx", described, tied, quantization, tensors)


@dataclass(frozen=True)
class _Stored(Config):
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Quantization(Config):
    bits: Literal[2, 3, 4, 5, 6, 8]
    group_size: Literal[32, 64, 128]


def _quantization_entries(config: Mapping[str, Any], source: str) -> dict[str, Mapping[str, Any]]:
    entries = config.get("quantization") or {}
    if not isinstance(entries, dict) or not all(
        name in COMPONENTS and isinstance(entry, dict) for name, entry in entries.items()
    ):
        raise ConfigError(f"{source} has quantization = {shown(entries)}, which is not an object for each component.")
    return entries


def _open_upstream(name: str, location: str, path: Path, config: dict[str, Any], partial: bool) -> Checkpoint:
    infos = read_headers(path)
    # merge_lora.py of the original can leave the unmerged tensors, under PEFT's names, beside the merged ones. A tensor
    # that PEFT named counts only where there is none of the plain name, which is then the merged one.
    plain = {key: info for key, info in infos.items() if not key.startswith(PREFIX)}
    named = dict(plain)
    for key, info in infos.items():
        bare = unwrapped_name(key)
        factor = parse_factor(bare)
        if key not in plain and (f"{factor.layer}.weight" if factor else bare) not in plain:
            named[bare] = info
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
        raise CheckpointError(f"'{path}' holds tensors that are not Mobile-O's: {format_names(unknown)}.")
    check_dtypes(path, _by_full_name(tensors))
    shapes = {key: info.shape for key, info in named.items()}
    source = str(path / "config.json")
    beside = {
        "dit": _diffusion(path, "transformer/config.json"),
        "vae": _diffusion(path, "vae/config.json"),
        "scheduler": _diffusion(path, "scheduler/scheduler_config.json"),
        "generation_config": path / "generation_config.json",
    }
    files = {key: file for key, file in beside.items() if file is not None and kind_of(file)}
    values: dict[str, Any] = {key: read_json(file) for key, file in files.items()}
    try:
        described = MobileOConfig.from_upstream(
            config, shapes, **values, source=source, sources={key: str(file) for key, file in files.items()}
        )
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        # Widths are read from the tensors, so a missing or mis-shaped one can show here first.
        raise CheckpointError(
            f"'{path}' lacks tensors that tell its dimensions, or they have odd shapes ({error}); get the model again."
        ) from error
    _check_blocks(path, described, tensors)
    return Checkpoint(name, location, path, "upstream", described, "lm_head" not in tensors, {}, tensors)


def _diffusion(path: Path, name: str) -> Path | None:
    """A configuration of diffusers in the folder `diffusion` inside the model's folder or beside it."""
    places = (path / "diffusion" / name, path.parent / "diffusion" / name)
    return next((file for file in places if kind_of(file)), None)


def _check_blocks(path: Path, config: MobileOConfig, tensors: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """Before anything is built: how many blocks there are, the tensors' names say too."""
    for component, infos in tensors.items():
        for start, (said, count) in block_counts(component, config).items():
            found = len({name[len(start) :].partition(".")[0] for name in infos if name.startswith(start)})
            if found != count:
                raise ConfigError(
                    f"'{path}' has a configuration of {component} with {said}, and tensors of {found} blocks "
                    f"{start}* instead of {count}; get the model again."
                )


def _by_full_name(tensors: Mapping[str, Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    return {f"{component}.{name}": info for component, infos in tensors.items() for name, info in infos.items()}
