"""Safetensors files: other tensors in a whole file, odd headers, damaged files."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from .mutations import TEXTS, Draw, Pairs, change, damaged, dump

# Names of types with the bytes of an element; the last ones no library has.
DTYPES = {
    "F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "F4": 1, "E8M0": 1, "f32": 4, "F128": 16, "": 1,
}  # fmt: skip
_PATTERNS = (b"\0", b"\xff", b"\x7f\xc0\0\0", b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\x7c", b"\xff\x7f", b"\x01")


def read_safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Name to dtype, shape and data."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {k: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for k, e in header.items()}


def safetensors_file(header: str, body: bytes, *, declared: int | None = None) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    size = len(text) if declared is None else declared
    return struct.pack("<Q", size % 2**64) + text + body


def _header_of(tensors: Sequence[tuple[str, tuple[str, list[int], bytes]]]) -> tuple[Pairs, bytes]:
    header, body = Pairs([("__metadata__", Pairs([("format", "pt")]))]), b""
    for name, (dtype, shape, data) in tensors:
        span = [len(body), len(body) + len(data)]
        header.append((name, Pairs([("dtype", dtype), ("shape", list(shape)), ("data_offsets", span)])))
        body += data
    return header, body


@st.composite
def safetensors_bytes(draw: Draw, base: bytes, *, names: Sequence[str] = ()) -> bytes:
    """A safetensors file: other tensors in a whole file, an odd header, or a damaged file.

    Args:
        base: a file.
        names: that tensors may get.
    """
    tensors = list(read_safetensors(base).items())
    kind = draw(st.integers(0, 9))
    if kind <= 5:
        for _ in range(draw(st.integers(1, 3))):
            if tensors:
                _change_tensor(draw, tensors, names)
        header, body = _header_of(tensors)
        return safetensors_file(dump(header), body)
    header, body = _header_of(tensors)
    if kind <= 8:
        holder: list[Any] = [header]
        for _ in range(draw(st.integers(1, 2))):
            change(draw, holder)
        declared = None
        if not draw(st.integers(0, 7)):
            declared = draw(
                st.sampled_from((0, 1, 7, len(dump(holder[0])) + 1, 2**20, 10**8, 2**31, 2**62, 2**63, 2**64 - 1))
            )
        extra = draw(st.sampled_from((b"", b"", b"", b"\0" * 8)))
        return safetensors_file(dump(holder[0]), body + extra, declared=declared)
    data = safetensors_file(dump(header), body)
    return draw(damaged(data[:4096])) + data[4096:] if draw(st.booleans()) else draw(damaged(data))


def _change_tensor(draw: Draw, tensors: list[Any], names: Sequence[str]) -> None:
    index = draw(st.integers(0, len(tensors) - 1))
    name, (dtype, shape, data) = tensors[index]
    kind = draw(st.integers(0, 7))
    if kind == 0:
        pattern = draw(st.sampled_from(_PATTERNS))
        data = (pattern * len(data))[: len(data)]
    elif kind == 1:
        dtype = draw(st.sampled_from(tuple(DTYPES)))
        count = len(data) // max(DTYPES.get(dtype, 1), 1) if draw(st.booleans()) else _product(shape)
        if count != _product(shape):
            shape = [count]
        data = (data * 4)[: count * DTYPES[dtype]]
    elif kind == 2:
        shape = draw(st.sampled_from((shape[::-1], [1, *shape], [*shape, 1], [*shape, 1, 1], [_product(shape)])))
    elif kind == 3:
        shape = draw(st.sampled_from(([], [0], [0, *shape], [1], [2, 2], [1] * 20, [1] * 9)))
        data = (data * 2)[: _product(shape) * DTYPES[dtype]].ljust(_product(shape) * DTYPES[dtype], b"\0")
    elif kind == 4:
        name = draw(st.sampled_from((*names, *TEXTS, name + "x", "base_model.model." + name, "__metadata__")))
    elif kind == 5:
        del tensors[index]
        return
    elif kind == 6:
        tensors.append((draw(st.sampled_from((name, *names, *TEXTS))), (dtype, shape, data)))
        return
    else:
        shape = [*shape[:-1], shape[-1] + 1] if shape else [2]
        data = (data * 2)[: _product(shape) * DTYPES[dtype]]
    tensors[index] = (name, (dtype, shape, data))


def _product(shape: Sequence[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result
