"""PNG, JPEG and WebP files, changed by the parts that they are made of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from hypothesis import strategies as st

from .mutations import Draw, damaged


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


def jpeg_parts(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The segments of a JPEG file by their markers, and all from the first scan on."""
    segments, place = [], 2
    while data[place : place + 1] == b"\xff" and data[place + 1] != 0xDA:
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append((data[place + 1], data[place + 4 : place + 2 + size]))
        place += 2 + size
    return segments, data[place:]


def write_jpeg(segments: Sequence[tuple[int, bytes]], tail: bytes) -> bytes:
    file = b"\xff\xd8"
    for marker, data in segments:
        file += bytes((0xFF, marker)) + struct.pack(">H", min(len(data) + 2, 65535)) + data
    return file + tail


@st.composite
def jpeg_bytes(draw: Draw, base: bytes) -> bytes:
    """A JPEG file whose segments are changed."""
    segments, tail = jpeg_parts(base)
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.integers(0, len(segments) - 1))
        marker, data = segments[index]
        change = draw(st.integers(0, 4))
        if change == 0:
            segments[index] = (marker, draw(damaged(data)))
        elif change == 1:
            segments.insert(0, (draw(st.sampled_from((0xE1, 0xE2, 0xED, 0xFE))), draw(st.sampled_from(_BLOCKS))))
        elif change == 2:
            segments[index] = (draw(st.integers(0xC0, 0xFE)), data)
        elif change == 3:
            segments.insert(index, (marker, data))
        else:
            tail = draw(damaged(tail))
    return write_jpeg(segments, tail)


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return chunks


def write_riff(chunks: Sequence[tuple[bytes, bytes]], size: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


@st.composite
def riff_bytes(draw: Draw, base: bytes) -> bytes:
    """A WebP file whose chunks are changed."""
    chunks = riff_chunks(base)
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
        kinds = st.sampled_from((b"EXIF", b"XMP ", b"ICCP", b"ALPH", b"ANIM", b"ANMF"))
        chunks.append((draw(kinds), draw(st.binary(max_size=40))))
    else:
        chunks[index] = (draw(st.sampled_from((b"VP8 ", b"VP8L", b"VP8X", b"abcd"))), data)
    return write_riff(chunks, draw(st.sampled_from((None, 0, 2**32 - 1))))
