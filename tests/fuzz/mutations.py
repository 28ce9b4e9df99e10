"""Mutations that know the structure of what they change: JSON, safetensors, PNG, JPEG, RIFF, tar, bytes.

The first choices are the mildest, so that hypothesis finds the smallest change that breaks something.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Raw(str):
    """Text that stands in JSON as it is."""


class Pairs(list):
    """The pairs of a JSON object, of which several may have the same key."""


ESCAPE = "\x1b]52;c;QQ==\x07\x9b31m"
TEXTS = (
    "", "6", "a", "../x", "/etc/passwd", "/dev/zero", "~", "~root/x", "a" * 300, "x" * 100_000, ESCAPE, "a\0b",
    "\ud800", "\u202e\u2066", "nan", "-1", "(.+)+@", "(a|a)*b", "[", "é", "😀", " ", "\n", "float16", "llm", "<|im_end|>", "NaN",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 1000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**9, 10**18, -(2**63),
    0.0, -0.0, 0.5, 1.5, 5e-324, 1e-30, 1e30, 1e38, 3.5e38, 1e300, -1e300,
)  # fmt: skip
RAW = tuple(
    Raw(text)
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "-" + "9" * 5000, "[" * 200 + "]" * 200,
                 '{"a":' * 150 + "1" + "}" * 150, "[" * 50_000, "01", "'a'", "// a", r'"\ud800"', r'"\x1b"', "tru")
)  # fmt: skip
CONTAINERS = ([], [[]], [None], [1], ["a"], Pairs(), Pairs([("a", 1)]), [0] * 1000, [1e300, -1])

hostile = st.one_of(
    st.sampled_from((None, True, False)),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(CONTAINERS),
    st.sampled_from(RAW),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)


def parse(text: str | bytes) -> Any:
    """JSON whose objects are `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """The inverse of `parse`, with `Raw` text as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dump(inside)}" for key, inside in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


@st.composite
def json_bytes(draw: Draw, base: Any) -> bytes:
    """A JSON file that differs from `base`, a value or the text of one, in some places."""
    tree = parse(base if isinstance(base, str | bytes) else json.dumps(base))
    holder = [tree]
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, holder)
    data = dump(holder[0]).encode("utf-8", "surrogatepass")
    return data if draw(st.integers(0, 9)) else draw(damaged(data))


def _change(draw: Draw, holder: list[Any]) -> None:
    """Changes one place below `holder`, which holds the tree."""
    parent, index = holder, 0
    while True:
        child = parent[index][1] if isinstance(parent, Pairs) else parent[index]
        if not isinstance(child, list) or not child or (parent is not holder and not draw(st.integers(0, 3))):
            break
        parent, index = child, draw(st.integers(0, len(child) - 1))
    if parent is holder and draw(st.integers(0, 9)):
        return
    put = (lambda value: (parent[index][0], value)) if isinstance(parent, Pairs) else (lambda value: value)
    kind = draw(st.integers(0, 9))
    if kind <= 3:
        parent[index] = put(draw(hostile))
    elif kind <= 5:
        parent[index] = put(draw(_near(child)))
    elif parent is holder:
        parent[0] = draw(hostile)
    elif kind == 6:
        del parent[index]
    elif kind == 7 and isinstance(parent, Pairs):
        parent[index] = (draw(st.sampled_from(TEXTS)), child)
    elif kind == 8:
        parent.insert(index, put(draw(hostile)))  # in an object the same key twice
    else:
        other = draw(st.integers(0, len(parent) - 1))
        parent[index], parent[other] = parent[other], parent[index]


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Values like this one."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None, 1, "true"))
    if isinstance(value, int):
        return st.sampled_from(
            (value + 1, value - 1, -value, 2 * value, value * 1000, float(value), str(value), [value])
        )
    if isinstance(value, float):
        return st.sampled_from((-value, value * 1e30, value / 1e30, str(value), [value], int(value), not value))
    if isinstance(value, Raw):
        return hostile
    if isinstance(value, str):
        return st.sampled_from(
            (value + "x", value[:-1], value.upper(), [value], value * 50, f"../{value}", value + ESCAPE)
        )
    if isinstance(value, list):
        return st.sampled_from((value[:-1], value + value[-1:], value * 3, value[::-1], list(value), [value]))
    return hostile


@st.composite
def damaged(draw: Draw, data: bytes) -> bytes:
    """A file that was cut, joined, transcoded, or changed in single bytes."""
    kind = draw(st.integers(0, 7))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + draw(st.sampled_from((b"x", b"\0" * 600, data, b"]", b"\xff")))
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return data.decode("utf-8", "replace").encode(draw(st.sampled_from(("utf-16", "utf-16-be", "utf-32"))))
    if kind == 4:
        return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
    if kind == 5:
        return data[:place] + data[place + draw(st.integers(1, 64)) :]
    if kind == 6:
        return draw(
            st.sampled_from(
                (b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x80\x04.")
            )
        )
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


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
            _change(draw, holder)
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


@st.composite
def png_bytes(draw: Draw, base: bytes) -> bytes:
    """A PNG file whose chunks are changed, with sums that are right where it matters."""
    chunks = png_chunks(base)
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.integers(0, len(chunks) - 1))
        kind, data = chunks[index]
        change = draw(st.integers(0, 6))
        if change == 0 and kind == b"IHDR":
            fields = list(struct.unpack(">IIBBBBB", data[:13].ljust(13, b"\0")))
            which = draw(st.integers(0, 6))
            sides = (0, 1, 2, 7, 255, 16384, 16385, 2**16, 2**27, 2**31 - 1, 2**31, 2**32 - 1)
            fields[which] = draw(st.sampled_from(sides if which < 2 else (0, 1, 2, 3, 4, 6, 7, 8, 16, 32, 255)))
            chunks[index] = (kind, struct.pack(">IIBBBBB", *fields))
        elif change <= 1:
            chunks[index] = (kind, draw(damaged(data)))
        elif change == 2:
            chunks.insert(index, draw(_extra_chunk()))
        elif change == 3:
            chunks.insert(1, draw(_extra_chunk()))
        elif change == 4:
            del chunks[index]
            if not chunks:
                break
        elif change == 5:
            chunks.insert(index, (kind, data))
        else:
            chunks[index] = (
                draw(st.sampled_from((b"IDAT", b"tEXt", b"PLTE", b"abcd", b"ABCD", b"IEND", b"\0\0\0\0"))),
                data,
            )
    data = write_png(chunks)
    return data if draw(st.integers(0, 5)) else draw(damaged(data))


@st.composite
def _extra_chunk(draw: Draw) -> tuple[bytes, bytes]:
    large = draw(st.sampled_from((10, 1000, 2_000_000, 60_000_000)))
    packed = zlib.compress(b"\0" * large)
    content = {
        b"zTXt": b"note\0\0" + packed,
        b"iTXt": b"note\0\1\0\0\0" + packed,
        b"iCCP": b"icc\0\0" + packed,
        b"tEXt": b"note\0" + b"x" * min(large, 1000),
        b"eXIf": draw(
            st.sampled_from((b"", b"II*\0\x08\0\0\0", b"MM\0*" + b"\xff" * 40, b"Exif\0\0II*\0" + b"\0" * 9))
        ),
        b"tRNS": draw(st.sampled_from((b"", b"\0\0", b"\xff" * 6, b"\0" * 300))),
        b"PLTE": draw(st.sampled_from((b"", b"\0\0\0", b"\1" * 768, b"\1" * 800))),
        b"gAMA": draw(st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b""))),
        b"acTL": struct.pack(">II", draw(st.sampled_from((0, 1, 2**31))), 0),
        b"fcTL": b"\0" * 26,
        b"pHYs": b"\0" * draw(st.integers(0, 9)),
        b"sBIT": b"\xff",
        b"cICP": b"\1\1\0\1",
    }
    return draw(st.sampled_from(tuple(content.items())))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def write_png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


_BLOCKS = (  # of metadata
    b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"ICC_PROFILE\0\1\2" + b"\0" * 200,
    b"http://ns.adobe.com/xap/1.0/\0<x",
    b"MPF\0MM\0*" + b"\xff" * 99,
)


@st.composite
def jpeg_bytes(draw: Draw, base: bytes) -> bytes:
    """A JPEG file whose segments are changed."""
    segments, place = [], 2
    while base[place : place + 1] == b"\xff" and base[place + 1] != 0xDA:
        size = int.from_bytes(base[place + 2 : place + 4], "big")
        segments.append((base[place + 1], base[place + 4 : place + 2 + size]))
        place += 2 + size
    tail = base[place:]
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.integers(0, len(segments) - 1))
        marker, data = segments[index]
        change = draw(st.integers(0, 4))
        if change == 0:
            segments[index] = (marker, draw(damaged(data))[:65533])
        elif change == 1:
            segments.insert(0, (draw(st.sampled_from((0xE1, 0xE2, 0xED, 0xFE))), draw(st.sampled_from(_BLOCKS))))
        elif change == 2:
            segments[index] = (draw(st.integers(0xC0, 0xFE)), data)
        elif change == 3:
            segments.insert(index, (marker, data))
        else:
            tail = draw(damaged(tail))
    file = b"\xff\xd8"
    for marker, data in segments:
        file += bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data
    return file + tail


@st.composite
def riff_bytes(draw: Draw, base: bytes) -> bytes:
    """A WebP file whose chunks are changed."""
    chunks, place = [], 12
    while place + 8 <= len(base):
        size = int.from_bytes(base[place + 4 : place + 8], "little")
        chunks.append((base[place : place + 4], base[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    index = draw(st.integers(0, len(chunks) - 1))
    kind, data = chunks[index]
    change = draw(st.integers(0, 3))
    if change == 0:
        chunks[index] = (kind, draw(damaged(data)))
    elif change == 1:
        sides = draw(st.sampled_from(((0, 0), (2**24 - 1, 2**24 - 1), (16383, 16383), (7, 5))))
        canvas = b"".join(side.to_bytes(3, "little") for side in sides)
        chunks.insert(0, (b"VP8X", bytes((draw(st.integers(0, 255)), 0, 0, 0)) + canvas))
    elif change == 2:
        chunks.append(
            (
                draw(st.sampled_from((b"EXIF", b"XMP ", b"ICCP", b"ALPH", b"ANIM", b"ANMF"))),
                draw(st.binary(max_size=40)),
            )
        )
    else:
        chunks[index] = (draw(st.sampled_from((b"VP8 ", b"VP8L", b"VP8X", b"abcd"))), data)
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", draw(st.sampled_from((len(body), 0, 2**32 - 1)))) + body


@st.composite
def tar_bytes(draw: Draw, members: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar file of these members and odd ones, whole or damaged."""
    files: list[tuple[tarfile.TarInfo, bytes]] = []
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        files.append((info, data))
    for _ in range(draw(st.integers(1, 3))):
        if not files:
            break
        index = draw(st.integers(0, len(files) - 1))
        info, data = files[index]
        kind = draw(st.integers(0, 8))
        if kind == 0:
            data = draw(st.one_of(st.sampled_from([t.encode("utf-8", "surrogatepass") for t in TEXTS]), damaged(data)))
        elif kind == 1:
            name = draw(
                st.sampled_from(
                    (
                        *TEXTS,
                        info.name.upper(),
                        f"/{info.name}",
                        f"../../{info.name}",
                        f"a.b/{info.name}",
                        info.name.replace(".", "..", 1),
                        f"._{info.name}",
                        f"__MACOSX/{info.name}",
                    )
                )
            )
            info.name = name
        elif kind == 2:
            info.type = draw(
                st.sampled_from(
                    (
                        tarfile.LNKTYPE,
                        tarfile.SYMTYPE,
                        tarfile.CHRTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.DIRTYPE,
                        tarfile.CONTTYPE,
                        tarfile.GNUTYPE_SPARSE,
                        b"x",
                        b"g",
                        b"L",
                        b"Z",
                    )
                )
            )
            info.linkname = draw(st.sampled_from(("/etc/passwd", "", files[0][0].name)))
        elif kind == 3:
            del files[index]
            continue
        elif kind == 4:
            files.append((info, data))
        elif kind == 5:
            info.pax_headers = {
                draw(
                    st.sampled_from(
                        (
                            "path",
                            "size",
                            "GNU.sparse.map",
                            "GNU.sparse.size",
                            "GNU.sparse.major",
                            "GNU.sparse.realsize",
                            "mtime",
                            "hdrcharset",
                            "comment",
                            "x",
                        )
                    )
                ): draw(st.sampled_from((*TEXTS[:20], "9" * 30, "1.5", "0,1", "1099511627776")))
            }
        elif kind == 6:
            data = data * draw(st.sampled_from((0, 2, 3)))
        elif kind == 7:
            info.mtime = draw(st.sampled_from((0, -1, 2**33, 10**20)))
        else:
            files.insert(index, files.pop())
            continue
        if info.size == len(files[index][1]):
            info.size = len(data)
        files[index] = (info, data)
    stream = io.BytesIO()
    form = draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
    try:
        with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogatepass") as tar:
            for info, data in files:
                tar.addfile(info, io.BytesIO(data) if data else None)
    except (ValueError, OSError, struct.error):
        pass  # what tarfile does not write is left as it is: a tar that is cut
    data = stream.getvalue()
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(damaged(data))
    if kind <= 3:
        return draw(_odd_header(data))
    if kind == 4:
        import gzip

        return gzip.compress(data)[: draw(st.sampled_from((None, -10, 20)))]
    return data


@st.composite
def _odd_header(draw: Draw, data: bytes) -> bytes:
    """A tar file with one header's field changed, and the header's sum made right again."""
    places = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    if not places:
        return data
    start = draw(st.sampled_from(places))
    header = bytearray(data[start : start + 512])
    field = draw(
        st.sampled_from(
            (
                (0, 100),
                (100, 8),
                (124, 12),
                (136, 12),
                (156, 1),
                (157, 100),
                (257, 8),
                (329, 8),
                (345, 155),
                (386, 96),
                (482, 30),
            )
        )
    )
    content = draw(
        st.sampled_from(
            (
                b"\x80" + b"\xff" * 11,
                b"\xff" * 12,
                b"77777777777\0",
                b"-1",
                b"abc",
                b"\0" * 12,
                b"S",
                b"x",
                b"g",
                b"K",
                b"00000000001\0",
                b"\x80\0\0\0\0\1\0\0\0\0\0\0",
            )
        )
    )
    header[field[0] : field[0] + field[1]] = content.ljust(field[1], b"\0")[: field[1]]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]
