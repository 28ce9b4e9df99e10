"""Writing a model in our layout, and telling what a model on disk consists of.

Our layout is a folder with `config.json`, one safetensors file for each component, and `tokenizer.json`. The tensors
have our names and MLX's order of dimensions, so that loading is the identity, and each task reads its files alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..atomic import atomic_folder, check_output_folder
from ..errors import NotFiniteError, OptionError
from ..files import is_file
from ..models.mobileo import COMPONENTS, MobileOConfig
from ..ops.finite import is_finite
from . import turbo
from .adapters import Adapter, merged_notes, notes_of, open_adapters
from .checkpoint import FORMAT_VERSION, Checkpoint
from .hub import OUR_FORMAT, TOKENIZER_FILES
from .load import load_component
from .modules import named_parameters
from .precision import DTYPES, dtype_name, parse_dtypes
from .quantize import QuantizeSpec, resolve_bits
from .tensor_files import TensorInfo, write_tensors
from .weights_fault import adapter_fault, range_fault, stored_fault


@dataclass(frozen=True)
class ComponentInfo:
    """What is stored for one component."""

    name: str
    parameters: int  # weights before quantization; running statistics count, counters don't
    dtype: str  # float32, float16 or bfloat16; of what is not quantized, where there are bits
    bits: int | None  # of the quantized layers; None where nothing is quantized
    group_size: int | None
    nbytes: int  # of the tensors on disk


@dataclass(frozen=True)
class ModelInfo:
    """What a model on disk consists of."""

    name: str  # what the user called it
    path: Path
    layout: str  # upstream or mobileo-mlx
    components: tuple[ComponentInfo, ...]
    tied: bool  # whether the embedding serves as lm_head
    tokenizer: bool  # whether there is one
    image_size: int  # side in pixels of the square that the vision tower sees
    default_size: tuple[int, int]  # width and height in pixels of a drawing
    extra: tuple[str, ...] = ()  # tensors that nothing asks for, which keeps the model from being loaded
    turbo: Mapping[str, Any] | None = None  # the options of drawing of its few-step adapter, where it has one

    @property
    def parameters(self) -> int:
        return sum(component.parameters for component in self.components)

    @property
    def nbytes(self) -> int:
        return sum(component.nbytes for component in self.components)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        totals = {"parameters": self.parameters, "nbytes": self.nbytes}
        return {**dataclasses.asdict(self), "path": str(self.path), **totals}


def describe(model: str | Path | Checkpoint, *, progress: bool = False) -> ModelInfo:
    """What a model on disk consists of, and whether it fits its configuration; reads headers and configuration only.

    Args:
        model: as for `Checkpoint.open`, or a checkpoint that is open.
        progress: whether a download draws its bars.

    Raises:
        as `Checkpoint.open` and `Checkpoint.check`, of what is there. Tensors that nothing asks for are listed.
    """
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model, progress=progress)
    there = [name for name in COMPONENTS if checkpoint.has(name)]
    checkpoint.check(*there, extra=True)
    own = turbo.find(checkpoint)
    return ModelInfo(
        name=checkpoint.name,
        path=checkpoint.path,
        layout=checkpoint.layout,
        components=tuple(_describe(checkpoint, name) for name in there),
        tied=checkpoint.tied,
        tokenizer=_has_tokenizer(checkpoint.path),
        image_size=checkpoint.config.image_size,
        default_size=checkpoint.config.default_size,
        extra=tuple(checkpoint.extra(*there)),
        turbo=None if own is None else dict(own.drawing),
    )


def _describe(checkpoint: Checkpoint, component: str) -> ComponentInfo:
    infos = checkpoint.tensors(component)
    spec = checkpoint.quantization.get(component)
    dtype = checkpoint.stored_dtype(component)
    return ComponentInfo(
        name=component,
        parameters=sum(_weights(name, info, infos, spec) for name, info in infos.items()),
        dtype=next(name for name, known in DTYPES.items() if known == dtype),
        bits=spec.bits if spec else None,
        group_size=spec.group_size if spec else None,
        nbytes=sum(info.nbytes for info in infos.values()),
    )


def _weights(name: str, info: TensorInfo, infos: Mapping[str, TensorInfo], spec: QuantizeSpec | None) -> int:
    """The weights that a stored tensor stands for."""
    layer, _, leaf = name.rpartition(".")
    if info.dtype == "I64":
        return 0
    if spec is None or f"{layer}.scales".lstrip(".") not in infos:
        return info.size
    if leaf in ("scales", "biases"):
        return 0
    return info.size * 32 // spec.bits if info.dtype == "U32" else info.size


def _has_tokenizer(folder: Path) -> bool:
    return any(is_file(folder / name) for name in TOKENIZER_FILES)


def convert(
    model: str | Path,
    folder: str | Path,
    *,
    dtype: str | Mapping[str, str] | None = None,
    quantize: Mapping[str, int] | None = None,
    precision: str | None = None,
    progress: Callable[[str], None] | None = None,
    download_progress: bool = False,
) -> ModelInfo:
    """Writes a model in our layout into a new folder, one component after the other, whole or not at all.

    One tensor at a time is in memory, and the quantized layers of one component. A few-step adapter in the folder
    `turbo` goes along.

    Args:
        model: as for `Checkpoint.open`; may be in our layout already.
        folder: must be new or empty.
        dtype: float32, float16 or bfloat16, or by component as in `MobileO.load`; by default what is stored.
        quantize: bits per component, as {"llm": 4, "dit": 8}; `vae` and `all` are understood.
        precision: bits by name, which `quantize` changes; see `mobileo_mlx.checkpoints.quantize.PRECISIONS`.
        progress: called with the name of each component before it is written.
        download_progress: whether a download draws its bars.

    Returns:
        what was written. Its `tokenizer` is False where the source has none: drawing and answering need it.

    Raises:
        OptionError: an unknown dtype, precision or component, or a component that is quantized already.
        OutputError: the folder exists and is not empty, or can't be written, or the disk is full.
        CheckpointError: the source is damaged; see `Checkpoint`.
        NotFiniteError: a weight is NaN or infinite, in the source or in the dtype asked for.
    """
    bits = resolve_bits(quantize, precision)
    dtypes = parse_dtypes(dtype)
    check_output_folder(folder)  # before a download of gigabytes
    source = Checkpoint.open(model, progress=download_progress)
    if twice := sorted(bits.keys() & source.quantization.keys()):
        raise OptionError(f"{', '.join(twice)} of '{source.path}' can't be quantized again: start from the original.")
    quantization = source.quantization | {name: QuantizeSpec(n) for name, n in bits.items() if source.has(name)}
    return _write(source, folder, dtypes, quantization, (), progress)


def fuse(
    model: str | Path,
    adapter: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    scale: float | Sequence[float] = 1.0,
    dtype: str | Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    note: Callable[[str], None] | None = None,
    download_progress: bool = False,
) -> ModelInfo:
    """Writes a model with adapters merged into its weights, as `convert` writes a model.

    A few-step adapter in the folder `turbo` goes along, unless one is merged.

    Args:
        model, folder, progress, download_progress: see `convert`.
        adapter: an adapter or several, as in `MobileO.load`.
        scale: how strongly it changes the model: 0 not at all, 1 as trained; one for all, or one for each.
        dtype: see `convert`; of the merged weights too.
        note: called with each sentence that the user should know.

    Raises:
        CheckpointError: the model or an adapter is damaged, or an adapter is for another model.
        OptionError: an adapter changes a component that is quantized: quantizing the sum again would lose much of
            what the adapter adds.
        OutputError, NotFiniteError: see `convert`.
    """
    dtypes = parse_dtypes(dtype)
    check_output_folder(folder)
    opened = open_adapters(adapter, scale, progress=download_progress)
    source = Checkpoint.open(model, progress=download_progress)
    for one in opened:
        one.check(source)
        if quantized := sorted(one.components & source.quantization.keys()):
            raise OptionError(
                f"{', '.join(quantized)} of '{source.path}' is quantized, so '{one.name}' can't be merged into it: "
                "fuse it into the original, and convert the result."
            )
    if note is not None:
        for sentence in notes_of(opened, source) + merged_notes(opened):
            note(sentence)
    return _write(source, folder, dtypes, source.quantization, opened, progress)


def _write(
    source: Checkpoint,
    folder: str | Path,
    dtypes: Mapping[str, mx.Dtype],
    quantization: Mapping[str, QuantizeSpec],
    adapters: Sequence[Adapter],
    progress: Callable[[str], None] | None,
) -> ModelInfo:
    # A part of a model is one, too. But without its lm_head it would pass for one whose embedding serves instead.
    components = [name for name in COMPONENTS if source.has(name) or (name == "lm_head" and not source.tied)]
    own = turbo.find(source)
    with atomic_folder(folder) as temporary:
        for component in components:
            if progress is not None:
                progress(component)
            stored_dtype = dtypes.get(component) or source.stored_dtype(component)
            spec = quantization.get(component)
            module = load_component(source, component, dtype=stored_dtype, quantize=spec, adapters=adapters, merge=True)
            tensors = named_parameters(module)
            # The module would keep every tensor alive that is written.
            del module

            def check(name: str, tensor: mx.array, component: str = component) -> None:
                if not is_finite(tensor):
                    fault = stored_fault(source, component) or adapter_fault(adapters, component)
                    asked = dtype_name(tensor.dtype)
                    raise NotFiniteError(component, fault or range_fault(adapters, component, "weights", asked))

            write_tensors(temporary / f"{component}.safetensors", tensors, check=check)
            mx.clear_cache()
        if _has_tokenizer(source.path):
            source.load_tokenizer().save(temporary / "tokenizer.json")
        if own is not None and not any(adapter.drawing for adapter in adapters):
            turbo.copy(own, temporary)
        write_config(temporary, source.config, components, quantization)
    return describe(folder)


def write_config(
    folder: Path,
    config: MobileOConfig,
    components: Sequence[str],
    quantization: Mapping[str, QuantizeSpec] | None = None,
) -> None:
    """Writes the `config.json` of our layout.

    Args:
        folder: where to.
        config: the configuration of all components, of those too that are not stored.
        components: those that are.
        quantization: of those that are stored quantized.
    """
    content = {
        "format": OUR_FORMAT,
        "format_version": FORMAT_VERSION,
        "components": list(components),
        "quantization": {
            name: {"bits": spec.bits, "group_size": spec.group_size} for name, spec in (quantization or {}).items()
        },
        **config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
