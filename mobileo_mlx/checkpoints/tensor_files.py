"""Safetensors files: headers that are checked before anything is read, and writing tensor by tensor.

The format is eight bytes of length, a JSON header of that length, then the data. A download that was cut short, or an
error page saved under the name of a model, shows in the header; so a damaged file is found at once, and is named.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx

INDEX = "model.safetensors.index.json"
ITEM_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
# The limit of the reference implementation. A longer header is a file that is something else.
_MAX_HEADER = 100_000_000
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor."""

    key: str  # its name in the file
    dtype: str  # as in safetensors: F32, BF16, ...
    shape: tuple[int, ...]
    file: Path
    nbytes: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds, by name, without their data.

    Raises:
        CheckpointError: the file is missing, cut short, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            file_size = path.stat().st_size
            start = file.read(8)
            if start == b"version ":
                raise CheckpointError(
                    f"'{path}' is a pointer of Git LFS and not the weights; run `git lfs pull` in its folder."
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if len(start) == 8 and length > _MAX_HEADER:
                raise _foreign(path)
            if len(start) < 8 or 8 + length > file_size:
                raise _cut_short(path)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read ({error.strerror or error}).") from error
    try:
        header = json.loads(text)
        infos = {
            key: _info(key, entry, path, file_size - 8 - length)
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _foreign(path) from error
    return infos


def _info(key: str, entry: Any, path: Path, data_size: int) -> TensorInfo:
    """One entry of a header; ValueError, KeyError or TypeError where it makes no sense."""
    shape = tuple(int(n) for n in entry["shape"])
    start, end = entry["data_offsets"]
    nbytes = math.prod(shape) * ITEM_SIZES[entry["dtype"]]
    if min(shape, default=0) < 0 or start < 0 or end - start != nbytes:
        raise ValueError(f"{key}: {shape} in {start}..{end}")
    if end > data_size:
        raise _cut_short(path)
    return TensorInfo(key, entry["dtype"], shape, path, nbytes)


def _cut_short(path: Path) -> CheckpointError:
    return CheckpointError(f"'{path}' is cut short; remove it and download it again.")


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged, or not a safetensors file; remove it and download it again.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in upstream's layout: one, or the shards that the index lists.

    Raises:
        CheckpointError: the index can't be read, or shards are missing; all of them are named.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
            raise CheckpointError(f"'{index}' has no map of the weights; download it again.")
        names = sorted(set(weight_map.values()))
    elif single.is_file():
        names = [single.name]
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        shards = [match for name in names if (match := _SHARD.fullmatch(name))]
        for prefix, count in {(m[1], m[3]) for m in shards}:
            names += [f"{prefix}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
        names = sorted(set(names))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"'{folder}' lacks {', '.join(missing)}, which its other files refer to; download the model again."
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, not JSON, or something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object; download it again.")
    return value


def read_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    """The tensors under the names of the mapping. They are lazy: data is read when an array is evaluated."""
    import mlx.core as mx

    files = {info.file for info in infos.values()}
    contents: dict[Path, Any] = {file: mx.load(str(file)) for file in files}
    return {name: contents[info.file][info.key] for name, info in infos.items()}


def write_tensors(path: Path, tensors: dict[str, mx.array]) -> int:
    """Writes a safetensors file, and empties `tensors` on the way, so that one tensor at a time is in memory.

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
        mx.uint32: "U32",
    }
    # Wide items first: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
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
            # Python's buffers know no bfloat16; the bytes are the same whatever they are called.
            file.write(memoryview(data.view(mx.uint16) if data.dtype == mx.bfloat16 else data))
    return 8 + len(text) + offset
