"""Safetensors files: headers that are checked before anything is read, and writing tensor by tensor.

The `safetensors` library reads the headers. A download that was cut short, or an error page saved under the name of a
model, shows there; so a damaged file is found at once, and is named.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..files import check_input, read_json

if TYPE_CHECKING:
    import mlx.core as mx

INDEX = "model.safetensors.index.json"
_BITS = re.compile(r"[A-Z]+(\d+)")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


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
        CheckpointError: the file is missing, cut short, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    check_input(path)
    try:
        # NumPy has no bfloat16, but no values are read here.
        with safe_open(path, framework="numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            return {key: TensorInfo(key, s.get_dtype(), tuple(s.get_shape()), path) for key, s in slices.items()}
    except SafetensorError as error:
        with path.open("rb") as start:
            if start.read(8) == b"version ":
                raise CheckpointError(
                    f"'{path}' is a pointer of Git LFS and not the weights; run `git lfs pull` in its folder."
                ) from error
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"'{path}' is cut short or damaged, or not a safetensors file ({reason}); remove it and download it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"'{path}' can't be read ({error.strerror or error}).") from error


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


def read_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, mx.array]:
    """The tensors under the names of the mapping. They are lazy: data is read when an array is evaluated."""
    import mlx.core as mx

    files = {info.file for info in infos.values()}
    contents: dict[Path, Any] = {file: mx.load(str(file)) for file in files}
    return {name: contents[info.file][info.key] for name, info in infos.items()}


def write_tensors(
    path: Path,
    tensors: dict[str, mx.array],
    *,
    made_for: str = "mlx",
    check: Callable[[mx.array], None] = lambda tensor: None,
) -> int:
    """Writes a safetensors file, and empties `tensors` on the way, so that one tensor at a time is in memory.

    The writers of the safetensors library and of MLX want all of them in memory at once.

    Args:
        path: of the file.
        tensors: by name.
        made_for: the library whose layout the tensors have, as readers look for it: "mlx", or "pt" for PyTorch.
        check: called with each tensor before it is written; what it raises leaves an unfinished file.

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
            check(data)
            # Python's buffers know no bfloat16; the bytes are the same whatever they are called.
            file.write(memoryview(data.view(mx.uint16) if data.dtype == mx.bfloat16 else data))
    return 8 + len(text) + offset
