"""Writing a model, or the half of it that another program can use, as that program reads it.

One tensor at a time is in memory, and the quantized layers of the components that are quantized. Each folder has a
model card, and the tokenizer's files with the format of the prompts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..atomic import atomic_folder, check_output_folder
from ..errors import NotFiniteError, OptionError
from ..files import is_file
from ..ops.finite import is_finite
from . import turbo
from .adapters import Adapter, merged_notes, notes_of, open_adapters
from .apply_adapters import apply_adapters
from .checkpoint import Checkpoint
from .export_card import model_card
from .export_format import Format, layer_bits
from .export_language import APP, MLX_LM
from .export_tokenizer import write_tokenizer
from .export_upstream import UPSTREAM
from .export_vlm import MLX_VLM
from .hub import DEFAULT_MODEL, TOKENIZER_FILES
from .modules import named_parameters
from .precision import dtype_name
from .quantize import QuantizeSpec
from .quantize import quantize as quantize_module
from .tensor_files import INDEX, write_tensors
from .weights_fault import adapter_fault, range_fault, stored_fault

FORMATS = {known.name: known for known in (APP, MLX_LM, MLX_VLM, UPSTREAM)}
BITS = (4, 8, 16)
SHARD_BYTES = 5_000_000_000  # as transformers splits what it saves
_HALVES = (mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder.
        format: its format's name.
        bits: of the quantized layers, the fewest where they differ; None where nothing is quantized.
        dtypes: of all that is not quantized.
        tensors: how many there are.
        nbytes: of the weights' files.
        files: the names of all files, in order.
        tokenizer: whether there is one.
    """

    path: Path
    format: str
    bits: int | None
    dtypes: tuple[str, ...]
    tensors: int
    nbytes: int
    files: tuple[str, ...]
    tokenizer: bool

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export(
    folder: str | Path,
    format_name: str,
    *,
    model: str | Path = DEFAULT_MODEL,
    adapter: str | Path | Sequence[str | Path] = (),
    adapter_scale: float | Sequence[float] = 1.0,
    bits: int | None = None,
    progress: Callable[[str], None] | None = None,
    note: Callable[[str], None] | None = None,
    download_progress: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Writes a model for another program into a new folder, whole or not at all.

    With the whole model, "upstream", a few-step adapter in the folder `turbo` goes along: PEFT reads it there, too.

    Args:
        folder: must be new or empty.
        format_name: one of `FORMATS`: "app", the `llm` folder of Mobile-O's iOS app; "mlx-lm", the language model;
            "mlx-vlm", vision and language; "upstream", all of it in the original's layout.
        model: as for `Checkpoint.open`.
        adapter, adapter_scale: merged into the weights, as in `MobileO.load`.
        bits: 4 or 8 for the language model, in groups of 64 (of 32 where a width asks for it); 16 for a 16-bit dtype,
            into which a model that is quantized is dequantized. By default 4 for "app", and as stored for the others.
        progress: called with the name of each component before it is read.
        note: called with each sentence that the user should know.
        download_progress: whether a download draws its bars.
        shard_bytes: tensors of how many bytes a file of "upstream" holds at most, if more than one.

    Raises:
        OptionError: an unknown format, or bits that it has not; a model that the format can't hold; or weights that
            are quantized, and should have other bits, or an adapter.
        CheckpointError: the model or an adapter is damaged or incomplete, or an adapter is for another model.
        OutputError: the folder exists and is not empty, or can't be written, or the disk is full.
        NotFiniteError: a weight is NaN or infinite, in the model or in the dtype that is written.
    """
    if format_name not in FORMATS:
        raise OptionError(f"the format {format_name!r} is unknown; there are {', '.join(FORMATS)}.")
    chosen = FORMATS[format_name]
    if bits is not None and bits not in BITS:
        raise OptionError(f"bits = {bits}: they can be 4, 8 or 16.")
    if bits is not None and bits < 16 and not chosen.quantized:
        raise OptionError(f"{format_name} holds no quantized weights; leave --bits out.")
    check_output_folder(folder)  # before a download of gigabytes
    adapters = open_adapters(adapter, adapter_scale, progress=download_progress)
    source = Checkpoint.open(model, progress=download_progress)
    components = [name for name in chosen.components if name != "lm_head" or not source.tied]
    source.check(*components)
    chosen.check(source)
    for one in adapters:
        one.check(source)
    specs = _specs(source, chosen, components, chosen.bits if bits is None else bits, adapters)
    own = turbo.find(source) if "dit" in components else None
    notes = notes_of(adapters, source) + _untouched(adapters, components, format_name)
    for sentence in notes + (merged_notes(adapters) if "dit" in components else []):
        if note is not None:
            note(sentence)
    has_tokenizer = any(is_file(source.path / name) for name in TOKENIZER_FILES)
    tokenizer = source.load_tokenizer() if has_tokenizer else None

    with atomic_folder(folder) as temporary:
        tensors: dict[str, mx.array] = {}
        owners: dict[str, str] = {}
        layers: dict[str, tuple[int, int]] = {}
        for component in components:
            if progress is not None:
                progress(component)
            weights = _weights(source, component, specs[component], adapters)
            if bits == 16:
                weights = _dequantized(weights, source.quantization.get(component))
            named = chosen.tensors(component, _in_half(weights, chosen, bits), source)
            if (spec := specs[component]) is not None:
                layers |= layer_bits(named, spec.bits)
            owners |= dict.fromkeys(named, component)
            tensors |= named
            # They would keep every tensor of the last component alive that is written.
            del weights, named
        dtypes = sorted({dtype_name(w.dtype) for w in tensors.values() if mx.issubdtype(w.dtype, mx.floating)})
        count = len(tensors)

        def check(name: str, tensor: mx.array) -> None:
            if not is_finite(tensor):
                component, dtype = owners[name], dtype_name(tensor.dtype)
                fault = stored_fault(source, component) or adapter_fault(adapters, component)
                raise NotFiniteError(component, fault or range_fault(adapters, component, "weights", dtype))

        nbytes = _write_weights(temporary, tensors, chosen, shard_bytes, check)
        mx.clear_cache()
        if tokenizer is not None:
            write_tokenizer(temporary, tokenizer, source.config.llm.max_position_embeddings)
        for name, content in chosen.files(source, tokenizer, layers).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if own is not None and not any(one.drawing for one in adapters):
            turbo.copy(own, temporary)
        fewest = min((b for b, _ in layers.values()), default=None)
        stored = ", ".join(dtypes) if fewest is None else f"{fewest} bits, all else {', '.join(dtypes)}"
        if bits == 16 and (lost := {source.quantization[c].bits for c in components if c in source.quantization}):
            stored += f", dequantized from {' and '.join(map(str, sorted(lost)))} bits"
        options = [] if bits is None else ["--bits", str(bits)]
        card = model_card(
            source, format_name, bits=stored, folder=Path(folder).name, adapters=adapters, options=options
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
        files = tuple(sorted(str(f.relative_to(temporary)) for f in temporary.rglob("*") if f.suffix))
    return Exported(Path(folder), format_name, fewest, tuple(dtypes), count, nbytes, files, tokenizer is not None)


def _specs(
    source: Checkpoint, chosen: Format, components: Sequence[str], bits: int | None, adapters: Sequence[Adapter]
) -> dict[str, QuantizeSpec | None]:
    """How each component is quantized in what is written."""
    specs: dict[str, QuantizeSpec | None] = {}
    for component in components:
        wanted = bits if bits != 16 and component in chosen.quantized else None
        stored = source.quantization.get(component)
        changing = [adapter.name for adapter in adapters if component in adapter.components and adapter.scale != 0]
        if stored is not None and changing:
            raise OptionError(
                f"{component} of '{source.path}' is quantized, so '{changing[0]}' can't be merged into it: "
                "export the original with the adapter."
            )
        if stored is None:
            specs[component] = QuantizeSpec(wanted) if wanted is not None else None
        elif bits == 16:
            specs[component] = None
        elif component not in chosen.quantized:
            raise OptionError(
                f"{component} of '{source.path}' is quantized, and {chosen.name} holds it in full: export the "
                "original, or dequantize it with --bits 16, which brings nothing back of what is lost."
            )
        elif wanted not in (None, stored.bits):
            raise OptionError(
                f"{component} of '{source.path}' is quantized to {stored.bits} bits: export the original, "
                "or dequantize it with --bits 16, which brings nothing back of what is lost."
            )
        else:
            specs[component] = stored
    return specs


def _untouched(adapters: Sequence[Adapter], components: Sequence[str], format_name: str) -> list[str]:
    """What of adapters is not in the part of a model that is written."""
    return [
        f"the adapter '{adapter.name}' also changes {', '.join(left)}, which {format_name} does not hold."
        for adapter in adapters
        if (left := sorted(adapter.components - set(components)))
    ]


def _weights(
    source: Checkpoint, component: str, spec: QuantizeSpec | None, adapters: Sequence[Adapter]
) -> dict[str, mx.array]:
    """A component's weights under our names, each in the dtype that is stored, with adapters merged, then quantized."""
    module: nn.Module = source.network(component)
    dtypes = {name: w.dtype for name, w in named_parameters(module).items()}
    module = apply_adapters(adapters, component, module, source.config, merge=True)
    # What was merged is float32.
    module.load_weights([(name, w.astype(dtypes[name])) for name, w in named_parameters(module).items()])
    if spec is not None and component not in source.quantization:
        try:
            module = quantize_module(module, spec)
        except NotFiniteError as error:
            fault = stored_fault(source, component) or adapter_fault(adapters, component)
            raise NotFiniteError(component, fault) from error
    return named_parameters(module)


def _dequantized(weights: dict[str, mx.array], spec: QuantizeSpec | None) -> dict[str, mx.array]:
    """The same with dense weights in the place of quantized ones, of the dtype of their scales."""
    if spec is None:
        return weights
    dense = dict(weights)
    for layer, (bits, group_size) in layer_bits(weights, spec.bits).items():
        packed, scales, biases = (dense.pop(f"{layer}.{leaf}".lstrip(".")) for leaf in ("weight", "scales", "biases"))
        dense[f"{layer}.weight".lstrip(".")] = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    return dense


def _in_half(weights: dict[str, mx.array], chosen: Format, bits: int | None) -> dict[str, mx.array]:
    """The same in float16 where the format, or who asks for 16 bits, wants a 16-bit dtype."""

    def cast(w: mx.array) -> mx.array:
        if not mx.issubdtype(w.dtype, mx.floating):
            return w
        if chosen.half or (bits == 16 and chosen.quantized and w.dtype not in _HALVES):
            return w.astype(mx.float16)
        return w

    return {name: cast(w) for name, w in weights.items()}


def _write_weights(
    folder: Path,
    tensors: dict[str, mx.array],
    chosen: Format,
    shard_bytes: int,
    check: Callable[[str, mx.array], None],
) -> int:
    """Writes one file, or shards with an index; empties `tensors`. Returns the files' bytes."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if chosen is UPSTREAM and shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    total = sum(tensor.nbytes for tensor in tensors.values())
    weight_map: dict[str, str] = {}
    written = 0
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        part = {name: tensors.pop(name) for name in names}
        written += write_tensors(folder / file, part, made_for=chosen.made_for, check=check)
    if chosen.index or len(shards) > 1:
        index: Mapping[str, Any] = {
            "metadata": {"total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return written
