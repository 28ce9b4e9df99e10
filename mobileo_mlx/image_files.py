"""What a PNG, JPEG or TIFF file holds beside its pixels: profile, orientation, texts.

Pillow decodes the pixels. It reads what stands around them with limits, and with errors that cost the picture; so that
is taken out of the file before, and read here: only what is of use, and never more of it than a limit.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

TEXT_KEY = "mobileo-mlx"  # of the text in a PNG that says how it was made

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# The byte order of a TIFF file, and the bytes of: offsets, counts of entries, an entry. BigTIFF has longer ones.
_TIFF: dict[bytes, tuple[Literal["little", "big"], int, int, int]] = {
    b"II*\0": ("little", 4, 2, 12),
    b"MM\0*": ("big", 4, 2, 12),
    b"II+\0": ("little", 8, 8, 20),
    b"MM\0+": ("big", 8, 8, 20),
}
# XMP, IPTC, Photoshop, EXIF, GPS, interoperability. The profile and the orientation stand in the directory itself.
_TIFF_METADATA = {700, 33723, 34377, 34665, 34853, 40965}
_PLAIN = re.compile(rb"P[123]\s")  # PBM, PGM and PPM as text
_EXIF = b"Exif\0\0"
XMP_MARKER = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"

_MAX_TEXT = 2**22  # bytes, unpacked; a few kilobytes are usual
_MAX_PROFILE = 2**24  # bytes, unpacked; the largest in use, of printers, have some 4 million

# Pillow goes through chunks and segments one by one, and libjpeg through all pixels for each scan, however little they
# hold. Of 8 kilobytes each so many chunks are a gigabyte. Ten scans are usual, and libtiff has this limit.
_MAX_PARTS = 2**17
_MAX_SCANS = 100
_MAX_PLAIN = 2**23  # bytes of pixels in decimal digits, which Pillow reads at some 3 million a second

_XMP_KEY = "XML:com.adobe.xmp"
_EXIF_KEYS = ("Raw profile type exif", "Raw profile type APP1")  # ImageMagick's, before PNG had a chunk for it
_KEYS = {key.encode(): key for key in (TEXT_KEY, _XMP_KEY, *_EXIF_KEYS)}

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


@dataclass
class ImageFile:
    """An image file, taken apart.

    Attributes:
        data: a file that Pillow decodes to the same pixels.
        icc_profile: of the colours, or None.
        exif: the block as EXIF defines it, a small TIFF file, or None.
        xmp: the packet as XML, or None.
        texts: of a PNG, those whose key this module knows.
    """

    data: bytes
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    texts: dict[str, str] = field(default_factory=dict)


def take_apart(data: bytes) -> ImageFile:
    """Takes a PNG, JPEG or TIFF file apart; others stay whole. Where the structure ends, the rest stays as it is.

    Raises:
        ValueError: it would take far longer to decode than files of its kind do.
    """
    if data.startswith(_PNG):
        return _take_apart_png(data)
    if data.startswith(_JPEG):
        return _take_apart_jpeg(data)
    if data[:4] in _TIFF:
        return ImageFile(_without_tiff_metadata(data, *_TIFF[data[:4]]))
    if _PLAIN.match(data):
        return ImageFile(_without_comments(data))
    return ImageFile(data)


def heif_kind(data: bytes) -> Literal["HEIC", "AVIF", ""]:
    """Which relative of HEIF a file is, by the brands that it begins with; "" for all other files."""
    if data[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, end, 4))}
    return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if brands & _HEIC_BRANDS else ""


def _take_apart_png(data: bytes) -> ImageFile:
    whole = memoryview(data)
    kept = [whole[: len(_PNG)]]
    found = ImageFile(b"")
    position = len(_PNG)
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if not kind.isalpha() or position + 12 + length > len(data):
            break
        body = whole[position + 8 : position + 8 + length]
        if kind[:1].isupper() or kind == b"tRNS":  # a capital letter: pixels can't be read without it
            kept.append(whole[position : position + 12 + length])
            _check_count(len(kept), _MAX_PARTS, "chunks")
        elif kind == b"iCCP" and found.icc_profile is None:
            _, _, packed = bytes(body).partition(b"\0")
            found.icc_profile = _unpacked(packed[1:], _MAX_PROFILE)
        elif kind == b"eXIf":
            found.exif = bytes(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _read_text(kind, body, found.texts)
        position += 12 + length
        if kind == b"IEND":
            break
    kept.append(whole[position:])
    found.data = b"".join(kept)
    if found.exif is None:
        found.exif = next(filter(None, (_from_hexadecimal(found.texts.get(key, "")) for key in _EXIF_KEYS)), None)
    if _XMP_KEY in found.texts:
        found.xmp = found.texts[_XMP_KEY].encode("utf-8", "replace")
    return found


def _read_text(kind: bytes, body: memoryview, texts: dict[str, str]) -> None:
    """Adds what a text chunk says, if its key is one that is known and the chunk is well formed."""
    raw, _, rest = bytes(body[:80]).partition(b"\0")
    key = _KEYS.get(raw)
    if key is None:
        return
    rest = bytes(body[len(raw) + 1 :])
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        _, _, rest = rest[2:].partition(b"\0")  # the language
        _, _, rest = rest.partition(b"\0")  # the key in that language
    content = _unpacked(rest, _MAX_TEXT) if packed else rest[:_MAX_TEXT]
    if content is not None:
        # tEXt and zTXt are Latin-1 by the standard, and UTF-8 in what some programs write.
        try:
            texts[key] = content.decode()
        except UnicodeDecodeError:
            texts[key] = content.decode("latin-1")


def _unpacked(data: bytes, limit: int) -> bytes | None:
    """What zlib packed; None where it is damaged, or has more than `limit` bytes."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error:
        return None
    return content if len(content) <= limit else None


def _from_hexadecimal(text: str) -> bytes | None:
    """A profile as ImageMagick writes it into a text: its name, its length, and lines of hexadecimal digits."""
    match = re.match(r"\s*\w+\s+\d+\s", text)
    try:
        return bytes.fromhex(text[match.end() :]) if match else None
    except ValueError:
        return None


def _take_apart_jpeg(data: bytes) -> ImageFile:
    whole = memoryview(data)
    kept = [whole[:2]]
    found = ImageFile(b"")
    profile: dict[int, bytes] = {}
    position = 2
    for marker, start, end in _segments(data):
        body = whole[start + 4 : end]
        # JFIF's and Adobe's own say how colours are stored.
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in (0xE0, 0xEE):
            kept.append(whole[start:end])
            _check_count(len(kept), _MAX_PARTS, "segments")
        elif marker == 0xE1 and body[: len(_EXIF)] == _EXIF and found.exif is None:
            found.exif = bytes(body[len(_EXIF) :])
        elif marker == 0xE1 and body[: len(XMP_MARKER)] == XMP_MARKER and found.xmp is None:
            found.xmp = bytes(body[len(XMP_MARKER) :])
        elif marker == 0xE2 and body[: len(_ICC)] == _ICC and len(body) > len(_ICC) + 2:
            profile.setdefault(body[len(_ICC)], bytes(body[len(_ICC) + 2 :]))  # the pieces are numbered from 1
        position = end
    kept.append(whole[position:])
    found.data = b"".join(kept)
    _check_count(found.data.count(b"\xff\xda"), _MAX_SCANS, "scans")  # among pixels a 0 stands behind each 255
    if profile and sorted(profile) == list(range(1, len(profile) + 1)):
        found.icc_profile = b"".join(profile[number] for number in sorted(profile))
    return found


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker, begin and end of each segment before the pixels, as long as they are well formed."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # as many as one likes may stand before a marker
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        # 0xC0 to 0xFE but for those that have no length; the scan, 0xDA, is followed by pixels.
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or end < position + 4 or end > len(data):
            return
        yield marker, position, end
        position = end


def _check_count(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ValueError(f"it has more than {limit} {what}")


def _without_comments(data: bytes) -> bytes:
    """A PBM, PGM or PPM file in text; Pillow takes the square of the time for many comments."""
    _check_count(len(data), _MAX_PLAIN, "bytes, as text")
    return re.sub(rb"(?:#[^\r\n]*[\r\n]?)+", b"\n", data)


def _without_tiff_metadata(
    data: bytes, order: Literal["little", "big"], offset_size: int, count_size: int, entry_size: int
) -> bytes:
    """A TIFF file whose first directory, the only one that is read, has no metadata and no successor."""
    start = int.from_bytes(data[offset_size : 2 * offset_size], order)
    count = int.from_bytes(data[start : start + count_size], order)
    begin, end = start + count_size, start + count_size + count * entry_size
    if end + offset_size > len(data) or start < 2 * offset_size:
        return data
    entries = [data[i : i + entry_size] for i in range(begin, end, entry_size)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) not in _TIFF_METADATA]
    directory = len(kept).to_bytes(count_size, order) + b"".join(kept) + bytes(offset_size)
    return data[:start] + directory + data[start + len(directory) :]
