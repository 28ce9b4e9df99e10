"""Safetensors files: headers that are checked before anything is read, and writing tensor by tensor.

The `safetensors` library reads the headers, and MLX reads the data of files whose header has passed. A download that
was cut short, or an error page saved under the name of a model, shows there; so a damaged file is found at once, and is
named.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, format_names
from ..files import is_file, kind_of, open_input, parse_json, read_json

if TYPE_CHECKING:
    import mlx.core as mx

INDEX = "model.safetensors.index.json"

# What the values are when they have been read, by name in `mlx.core`. float64 is rounded; both kinds of float8 are
# exact in bfloat16.
READ_AS = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float32",
    "F8_E4M3": "bfloat16",
    "F8_E5M2": "bfloat16",
}
_IN_MLX = {
    **{"BOOL": "bool_", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"},
    **{
        f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("U", "uint"), ("I", "int")) for bits in (8, 16, 32, 64)
    },
}
_NOT_IN_MLX = ("F64", "F8_E5M2")  # MLX refuses a whole file for one of these

_MAX_HEADER = 2**23  # bytes; that of the 1.5B, in one file, has a thirtieth
_MAX_SIDE = 2**31  # MLX counts a dimension in 32 bits
_MAX_DIMENSIONS = 8  # a convolution's weight has 4
_BITS = re.compile(r"[A-Z]+(\d+)")
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    key: str  # its name in the file
    dtype: str  # as in safetensors: F32, BF16, ...
    shape: tuple[int, ...]
    file: Path

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        bits = _BITS.match(self.dtype)  # BOOL alone has none, and takes a byte
        return self.size * (int(bits[1]) if bits else 8) // 8


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds, by name, without their data.

    Raises:
        CheckpointError: the file is missing, cut short, or not a safetensors file; or its header is far too large, or
            has shapes that no array can have.
    """
    from safetensors import SafetensorError, safe_open

    with open_input(path) as file:
        start, nbytes = file.read(8), os.fstat(file.fileno()).st_size
    if start == b"version ":
        raise CheckpointError(
            f"'{path}' is a pointer of Git LFS and not the weights; run `git lfs pull` in its folder."
        )
    if len(start) == 8 and _MAX_HEADER < (length := struct.unpack("<Q", start)[0]) <= nbytes:
        raise CheckpointError(f"'{path}' has a header of {length:,} bytes, which no model needs; download it again.")
    try:
        # NumPy has no bfloat16, but no values are read here.
        with safe_open(path, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
            found = {key: TensorInfo(key, s.get_dtype(), tuple(s.get_shape()), path) for key, s in slices.items()}
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")[:200]  # it may quote a name
        raise CheckpointError(
            f"'{path}' is cut short or damaged, or not a safetensors file ({reason}); remove it and download it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read ({error.strerror or error}).") from error
    for key, info in found.items():
        if len(info.shape) > _MAX_DIMENSIONS or any(side >= _MAX_SIDE for side in info.shape):
            raise CheckpointError(
                f"'{path}' has a tensor {format_names([key])} of a shape that no array can have; download it again."
            )
    return found


def check_dtypes(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Says before anything is read whether all tensors can be, as what they are meant to be.

    These are floating-point numbers (see READ_AS), the packed weights of quantized layers, and the counters of
    BatchNorm, which are not used.

    Args:
        path: what holds them, for the error.
        infos: by the names to show; `<layer>.scales` is what makes `<layer>.weight` a quantized one.

    Raises:
        CheckpointError: some are of another type; all of them are listed.
    """
    odd = [f"{name} ({info.dtype})" for name, info in infos.items() if not _is_readable(name, info, infos)]
    if odd:
        raise CheckpointError(f"'{path}' holds tensors of types that can't be what they are for: {format_names(odd)}.")


def _is_readable(name: str, info: TensorInfo, infos: Mapping[str, TensorInfo]) -> bool:
    layer, _, leaf = name.rpartition(".")
    if leaf == "weight" and (f"{layer}.scales" if layer else "scales") in infos:
        return info.dtype == "U32"
    return info.dtype in READ_AS or (leaf == "num_batches_tracked" and info.dtype == "I64")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in upstream's layout: one, or the shards that the index lists.

    Raises:
        CheckpointError: the index can't be read, or shards are missing; all of them are named.
    """
    single = folder / "model.safetensors"
    if kind_of(folder / INDEX):
        names: Iterable[str] = set(_weight_map(folder).values())
    elif kind_of(single):
        names = {single.name}
    else:
        # Without hidden files: macOS leaves a "._name" beside each file on a disk of another system.
        names = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")}
        shards = [match for name in names if (match := _SHARD.fullmatch(name))]
        for prefix, count in {(m[1], m[3]) for m in shards}:
            names |= {f"{prefix}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        raise CheckpointError(
            f"'{folder}' lacks {format_names(missing)}, which its other files refer to; download the model again."
        )
    return [folder / name for name in sorted(names)]


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of all `weight_files` of a folder, by name; of those that several files hold, the index's choice.

    Raises:
        CheckpointError: see `weight_files` and `read_header`; a tensor is not where the index says; or several files
            hold it, and no index chooses.
    """
    by_file = {file.name: read_header(file) for file in weight_files(folder)}
    found: dict[str, TensorInfo] = {}
    twice = []
    for infos in by_file.values():
        twice += [key for key in infos if key in found]
        found |= infos
    chosen = _weight_map(folder) if kind_of(folder / INDEX) else {}
    if lost := [key for key, name in chosen.items() if key not in by_file[name]]:
        raise CheckpointError(
            f"'{folder / INDEX}' names files for {format_names(lost)} that do not hold them; download the model again."
        )
    if unclear := [key for key in twice if key not in chosen]:
        raise CheckpointError(
            f"'{folder}' holds {format_names(unclear)} in more than one file; remove the files that are not the "
            "model's, or download it again."
        )
    return found | {key: by_file[name][key] for key, name in chosen.items()}


def _weight_map(folder: Path) -> dict[str, str]:
    """Which file of the folder holds which tensor, as its index says."""
    index = folder / INDEX
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"'{index}' has no map of the weights; download it again.")
    for name in names.values():
        if "/" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"'{index}' names {name[:100]!r}, which is no safetensors file of its folder; download it again."
            )
    return names


def read_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    """The tensors under the names of the mapping, of the dtypes of READ_AS, or as stored.

    They are lazy: data is read when an array is evaluated. Those of a file with a dtype that MLX does not have are read
    at once.

    Raises:
        CheckpointError: a file can't be read.
    """
    import mlx.core as mx

    by_file: dict[Path, dict[str, TensorInfo]] = {}
    for name, info in infos.items():
        by_file.setdefault(info.file, {})[name] = info
    tensors: dict[str, mx.array] = {}
    for file, parts in by_file.items():
        try:
            content: Any = mx.load(str(file))
        except (OSError, ValueError, RuntimeError) as error:
            if all(info.dtype not in _NOT_IN_MLX for info in read_header(file).values()):
                raise CheckpointError(f"'{file}' can't be read ({error}); download it again.") from error
            tensors |= _read_at_once(file, parts)
            continue
        for name, info in parts.items():
            array = content[info.key]
            tensors[name] = mx.from_fp8(array, mx.bfloat16) if info.dtype == "F8_E4M3" else array
    return {name: tensors[name] for name in infos}


def placeholders(infos: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    """Arrays of the shapes of the tensors, by the names of the mapping; nothing is read or computed."""
    import mlx.core as mx

    return {name: mx.zeros(info.shape, getattr(mx, READ_AS.get(info.dtype, "uint32"))) for name, info in infos.items()}


def _read_at_once(path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    import mlx.core as mx
    import numpy as np

    tensors = {}
    with open_input(path) as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = parse_json(file.read(length))
        for name, info in infos.items():
            begin, end = header[info.key]["data_offsets"]
            file.seek(8 + length + begin)
            data = np.frombuffer(file.read(end - begin), np.uint8)
            if info.dtype == "F64":
                with np.errstate(over="ignore"):  # infinity, which is found where values are looked at
                    array = mx.array(data.view(np.float64).astype(np.float32))
            elif info.dtype == "F8_E5M2":  # the upper byte of a float16
                array = (mx.array(data).astype(mx.uint16) << 8).view(mx.float16).astype(mx.bfloat16)
            elif info.dtype == "F8_E4M3":
                array = mx.from_fp8(mx.array(data), mx.bfloat16)
            elif info.dtype in _IN_MLX:
                array = mx.array(data).view(getattr(mx, _IN_MLX[info.dtype]))
            else:
                raise CheckpointError(f"'{path}' holds {info.key} of type {info.dtype}, which can't be read.")
            tensors[name] = array.reshape(info.shape)
    return tensors


def write_tensors(
    path: Path,
    tensors: dict[str, mx.array],
    *,
    made_for: str = "mlx",
    check: Callable[[str, mx.array], None] = lambda name, tensor: None,
) -> int:
    """Writes a safetensors file, and empties `tensors` on the way, so that one tensor at a time is in memory.

    The writers of the safetensors library and of MLX want all of them in memory at once.

    Args:
        path: of the file.
        tensors: by name.
        made_for: the library whose layout the tensors have, as readers look for it: "mlx", or "pt" for PyTorch.
        check: called with each name and tensor before it is written; what it raises leaves an unfinished file.

    Returns:
        the bytes written.

    Raises:
        OSError: for instance because the disk is full.
    """
    import mlx.core as mx

    codes = {
        mx.float32: "F32",
        mx.float16: "F16",
        mx.bfloat16: "BF16",
        mx.int64: "I64",
        mx.int32: "I32",
        mx.uint64: "U64",
        mx.uint32: "U32",
    }
    # Wide items first: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": made_for}}
    offset = 0
    for name in names:
        dtype, shape, nbytes = tensors[name].dtype, tensors[name].shape, tensors[name].nbytes
        span = [offset, offset + nbytes]
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": span}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            # Contiguous first: a transposed array's buffer is not in the order of its elements.
            data: Any = mx.contiguous(tensors.pop(name))
            check(name, data)
            # Python's buffers know no bfloat16; the bytes are the same whatever they are called.
            file.write(memoryview(data.view(mx.uint16) if data.dtype == mx.bfloat16 else data))
    return 8 + len(text) + offset
