"""Adapters: what post-training changed, applied to a model's components while they load.

An adapter is a folder, or a repository on the hub. `adapter_config.json` and `adapter_model.safetensors` are what the
PEFT library writes and reads for upstream's checkpoint: low-rank updates (arXiv 2106.09685) under the names of its
layers, perhaps with magnitudes (DoRA, arXiv 2402.09353). With `adapters.safetensors` in place of the second they are
what mlx-lm writes for the language model alone. `trained.safetensors` is ours: parts that were trained in full, as
`component.name` in our names and layout. How all of them are applied is in `apply_adapters`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, OptionError, format_names
from ..files import absolute, expand, is_file, is_folder, kind_of
from ..models.mobileo import COMPONENTS, MobileOConfig, build, sanitize
from . import hub_adapters
from .adapter_config import CONFIG_FILE, LARGEST_SCALE, MlxLmConfig, PeftConfig, read_config
from .adapter_tensors import AdapterTensors, LowRank, layer_name, parse_tensors
from .modules import named_parameters, preserve_rng_state
from .tensor_files import TensorInfo, check_dtypes, placeholders, read_header, read_tensors

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

WEIGHTS_FILE = "adapter_model.safetensors"
MLX_LM_FILE = "adapters.safetensors"
TRAINED_FILE = "trained.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, MLX_LM_FILE, TRAINED_FILE)
STEPS = "step-*"  # folders of a training run, each of which holds the adapter of its step

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What trainers leave beside an adapter, to go on from: it changes nothing in the model.
_OF_A_STEP = re.compile(r"[0-9]+_adapters\.safetensors")  # mlx-lm's checkpoints
_TRAINING_STATE = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.", "random_states", "sampler.")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, of which only headers and the configuration have been read.

    Attributes:
        name: what the user called it.
        path: its folder, from the root of the file system.
        location: what finds it from any working directory: the same path, or its name on the hub.
        scale: of everything that it changes: 0 leaves the model as it is, 1 is the adapter as trained.
        config: of `adapter_config.json`; None where there is none.
        low_rank: component to layer path to update.
        full: component to tensors that take the place of the model's, by upstream's names (PEFT's
            `modules_to_save`).
        trained: the same by our names.
        unknown: tensors that belong to nothing.
        notes: what a user should know about it, a sentence each.
    """

    name: str
    path: Path
    location: str
    scale: float = 1.0
    config: PeftConfig | MlxLmConfig | None = None
    low_rank: dict[str, dict[str, LowRank]] = field(default_factory=dict, repr=False)
    full: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    trained: dict[str, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: str | Path, *, scale: float = 1.0, progress: bool = False) -> Adapter:
        """Reads the configuration and the headers of an adapter.

        Args:
            folder: that holds it; or a repository on the hub, which is downloaded where it is not cached:
                `owner/name`, or `owner/name@revision`.
            scale: see the attributes.
            progress: whether a download draws its bars on standard error.

        Raises:
            CheckpointError: the folder holds no adapter, a damaged one, or one of a kind that is not known here
                (DownloadError: a repository is not reachable).
            OptionError: the scale is no number, or far too large.
        """
        scale = _checked_scale(scale)
        path = Path(absolute(expand(folder)))
        location = str(path)
        if isinstance(folder, str) and kind_of(path) == "" and hub_adapters.split_name(folder) is not None:
            path, location = hub_adapters.fetch(folder, FILES, progress=progress), folder
        config, tensors, read = None, AdapterTensors(), [TRAINED_FILE]
        if _holds_updates(folder, path):
            config = read_config(path / CONFIG_FILE)
            file = path / (MLX_LM_FILE if isinstance(config, MlxLmConfig) else WEIGHTS_FILE)
            read.append(file.name)
            stored = read_header(file)
            check_dtypes(file, stored)
            tensors = parse_tensors(stored, config, file)
        trained: dict[str, dict[str, TensorInfo]] = {}
        stored = read_header(path / TRAINED_FILE) if is_file(path / TRAINED_FILE) else {}
        check_dtypes(path / TRAINED_FILE, stored)
        for key, info in stored.items():
            component, _, name = key.partition(".")
            if component in COMPONENTS:
                trained.setdefault(component, {})[name] = info
            else:
                tensors.unknown.append(key)
        notes = (*(config.notes if config is not None else ()), *_unread(path, read))
        return cls(
            str(folder),
            path,
            location,
            scale,
            config,
            tensors.low_rank,
            tensors.full,
            trained,
            tuple(tensors.unknown),
            notes,
        )

    @property
    def components(self) -> set[str]:
        """What it changes."""
        return {*self.low_rank, *self.full, *self.trained}

    @property
    def drawing(self) -> Mapping[str, Any]:
        """The options of drawing that it was trained for, by name and not checked: of a few-step adapter.

        Empty for all others, and at scale 0, where it changes nothing.
        """
        return self.config.drawing if self.config is not None and self.scale != 0 else {}

    @preserve_rng_state()
    def check(self, checkpoint: Checkpoint) -> None:
        """Compares all names and shapes with those of a model; no weights are read.

        Raises:
            CheckpointError: the adapter changes nothing, or is for another model; all that does not fit is listed.
        """
        if not self.components and not self.unknown:
            raise CheckpointError(f"The adapter '{self.name}' changes nothing: there are no tensors in it.")
        unknown, missing = list(self.unknown), list[str]()
        unfit, wrong = list[str](), list[str]()
        num_layers = checkpoint.config.llm.num_hidden_layers
        for component in sorted(self.components):
            module = build(component, checkpoint.config)
            there = checkpoint.has(component)
            layers = dict(module.named_modules()) if there else {}
            linears = {path: layer.weight.shape for path, layer in layers.items() if type(layer) is nn.Linear}
            updates = self.low_rank.get(component, {})
            for path, update in updates.items():
                if path in linears:
                    wrong += update.wrong_shapes(*linears[path])
                else:
                    (unfit if path in layers else unknown).extend(info.key for info in update.tensors)
            if updates and (config := self.config) is not None:
                names = {path: layer_name(component, path) for path in linears if path not in updates}
                missing += [f"{component}.{path}" for path in names if config.targets(names[path], num_layers)]
            shapes = {name: array.shape for name, array in named_parameters(module).items() if there}
            for name, array in self.replacements(component, checkpoint.config, placeholders).items():
                if name not in shapes:
                    unknown.append(f"{component}.{name}")
                elif array.shape != shapes[name]:
                    wrong.append(f"{component}.{name} {array.shape} instead of {shapes[name]}")
        problems = [
            f"{kind} {format_names(names)}"
            for kind, names in (
                ("the model does not have", unknown),
                ("of layers that are not linear are", unfit),
                ("of the wrong shape are", wrong),
                ("the adapter lacks", missing),
            )
            if names
        ]
        if problems:
            base = self.config.base_model if self.config is not None else None
            made_for = f" (it was made for '{base}')" if base else ""
            raise CheckpointError(
                f"The adapter '{self.name}' is for another model than '{checkpoint.name}'{made_for}: "
                f"{'; '.join(problems)}."
            )

    def replacements(
        self,
        component: str,
        config: MobileOConfig,
        read: Callable[[Mapping[str, TensorInfo]], dict[str, mx.array]] = read_tensors,
    ) -> dict[str, mx.array]:
        """The tensors that take the place of the component's, by our names; not read yet."""
        upstream = read(self.full.get(component, {}))
        try:
            ours = sanitize(component, upstream, config)
        except (ValueError, IndexError) as error:
            raise CheckpointError(
                f"The adapter '{self.name}' holds tensors of {component} that have a wrong shape ({error})."
            ) from error
        return ours | read(self.trained.get(component, {}))


def open_adapters(
    adapters: str | Path | Sequence[str | Path] | None,
    scales: float | Sequence[float] = 1.0,
    *,
    progress: bool = False,
) -> tuple[Adapter, ...]:
    """Opens one or several adapters, which are applied in this order.

    Args:
        adapters: folders that hold them, or repositories on the hub.
        scales: one for all, or one for each.
        progress: whether a download draws its bars on standard error.

    Raises:
        CheckpointError: see `Adapter.open`.
        OptionError: there are more or fewer scales than adapters, or see `Adapter.open`.
    """
    names = [adapters] if isinstance(adapters, str | os.PathLike) else list(adapters or ())
    strengths: list[Any] = list(scales) if isinstance(scales, list | tuple) else [scales]
    if odd := [name for name in names if not isinstance(name, str | os.PathLike) or not str(name)]:
        raise OptionError(f"an adapter is {odd[0]!r}; give the name of its folder.")
    if not names:
        return ()
    if len(strengths) == 1:
        strengths *= len(names)
    if len(strengths) != len(names):
        raise OptionError(
            f"there are {len(strengths)} scales for {len(names)} adapter{'s' if len(names) > 1 else ''}; give one for "
            "all, or one for each."
        )
    return tuple(
        Adapter.open(name, scale=scale, progress=progress) for name, scale in zip(names, strengths, strict=True)
    )


def is_here(name: str) -> bool:
    """Whether `Adapter.open` does without a download: there is something of this name, or it is whole in the cache."""
    on_hub = kind_of(expand(name)) == "" and hub_adapters.split_name(name) is not None
    return not on_hub or hub_adapters.cached(name, FILES) is not None


def recorded(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The arguments of `open_adapters`, by their names in `MobileO.load`, that open the same again: texts and numbers.

    Lists where there are several, and nothing where there is none.
    """
    if not adapters:
        return {}
    locations, scales = [adapter.location for adapter in adapters], [adapter.scale for adapter in adapters]
    several = len(adapters) > 1
    return {"adapter": locations if several else locations[0], "adapter_scale": scales if several else scales[0]}


def notes_of(adapters: Sequence[Adapter], checkpoint: Checkpoint) -> list[str]:
    """What a user should know about adapters and a model, a sentence each."""
    notes: list[str] = []
    for adapter in adapters:
        notes += adapter.notes
        base = adapter.config.base_model if adapter.config is not None else None
        models = {found[0] for name in (base or "", checkpoint.name) if (found := hub_adapters.split_name(name))}
        if len(models) == 2:
            notes.append(f"the adapter '{adapter.name}' was made for '{base}', and this is '{checkpoint.name}'.")
    return notes


def merged_notes(adapters: Sequence[Adapter]) -> list[str]:
    """What a user should know of adapters that are merged, a sentence each."""
    return [
        f"'{adapter.name}' was trained for drawing in few steps, and what is written does not say so: draw with "
        f"{', '.join(f'{name} = {value}' for name, value in adapter.drawing.items())}."
        for adapter in adapters
        if adapter.drawing
    ]


def _checked_scale(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real) or not abs(scale) <= LARGEST_SCALE:
        shown = repr(scale)[:40] if not isinstance(scale, int) or abs(scale) < 2**63 else "beyond 2**63"
        raise OptionError(f"the adapter's scale is {shown}; choose a number near 1, which is the adapter as trained.")
    return float(scale)


def _holds_updates(name: str | Path, path: Path) -> bool:
    """Whether an adapter's folder holds more than `TRAINED_FILE`.

    Raises:
        CheckpointError: the folder holds no adapter; the message says what it holds instead.
    """
    if kind_of(path) not in ("folder", ""):
        raise CheckpointError(f"'{name}' is a file; give the folder that holds the adapter.")
    if any(is_file(path / file) for file in (WEIGHTS_FILE, MLX_LM_FILE)):
        return True
    if is_file(path / "adapter_model.bin"):
        raise CheckpointError(
            f"'{name}' holds its adapter as a pickle, adapter_model.bin, which is never read because it could run "
            f"programs: write it as {WEIGHTS_FILE} with PEFT (`save_pretrained`), or convert it with "
            "`safetensors.torch.save_file`, on a machine where you trust it."
        )
    if is_file(path / TRAINED_FILE) and not is_file(path / CONFIG_FILE):
        return False
    if is_file(path / CONFIG_FILE):
        return True  # and what is missing is said by its name
    steps = sorted(step.name for step in _listed(path) if step.match(STEPS) and _holds_adapter(step))
    of_steps = f"; its last checkpoint, '{Path(name) / steps[-1]}', does" if steps else ""
    raise CheckpointError(
        f"'{name}' holds no adapter: a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or with {TRAINED_FILE}, is "
        f"expected{of_steps}."
    )


def _holds_adapter(path: Path) -> bool:
    return is_folder(path) and any(is_file(path / name) for name in (WEIGHTS_FILE, TRAINED_FILE))


def _listed(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:  # missing, or it may be entered but not listed
        return []


def _unread(path: Path, read: Container[str]) -> list[str]:
    """Notes on files in an adapter's folder that may hold a part of the training, and are not read.

    Pickles never are: they can run any program.
    """
    names = [file.name for file in _listed(path) if file.suffix in (*_PICKLES, ".safetensors")]
    names = [name for name in names if name not in read and not name.startswith((".", *_TRAINING_STATE))]
    names = [name for name in names if not _OF_A_STEP.fullmatch(name)]
    if not names:
        return []
    return [
        f"{format_names(names)} in '{path}' {'are' if len(names) > 1 else 'is'} not read; if a part of what was "
        f"trained is there, add it to {WEIGHTS_FILE} (see docs/adapters.md)."
    ]
