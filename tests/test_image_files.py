"""What stands around the pixels of a file: none of it costs an intact picture, fills the memory, or is rewritten."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from mobileo_mlx.errors import ImageError
from mobileo_mlx.image_files import heif_kind, take_apart
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.images import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG file with chunks in front of its pixels and behind them."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    data = stream.getvalue()
    idat, iend = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    first, last = (b"".join(chunk(*one) for one in chunks) for chunks in (before, after))
    return data[:idat] + first + data[idat:iend] + last + data[iend:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


def exif(orientation: int, *, order: str = "<", rest: bytes = b"") -> bytes:
    """A block with one entry, which is followed by anything."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0) + rest


# An entry of each kind whose value lies outside of the block, or is longer than it, or is itself.
WILD = b"II*\0" + struct.pack(
    "<IH" + "HHII" * 4 + "I",
    *(8, 4),
    *(0x010F, 2, 2**31, 2**31),
    *(0x011A, 5, 1, 8),
    *(0x8769, 4, 1, 8),
    *(0x8825, 4, 1, 2**31),
    8,
)
BLOCKS = {
    "empty": b"",
    "a letter": b"x",
    "no block": b"Hello, I am no EXIF block.",
    "cut": exif(6)[:13],
    "many": b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 4000,
    "wild": WILD,
    "begins behind its end": b"II*\0\xff\xff\xff\x7f",
    "no number": b"II*\0" + struct.pack("<IHHHI8s", 8, 1, 0x0112, 2, 4, b"six\0"),
    "out of range": exif(77),
}


def test_a_png_is_read_whatever_its_texts_and_profile_hold() -> None:
    long = zlib.compress(b"workflow" * 200_000)
    files = {
        "compressed text": png((b"zTXt", b"workflow\0\0" + long)),
        "compressed international text": png((b"iTXt", b"workflow\0\1\0\0\0" + long)),
        "profile": png((b"iCCP", b"monitor\0\0" + long)),
        "profile in an unknown compression": png((b"iCCP", b"monitor\0\7" + long)),
        "profile without a name": png((b"iCCP", b"")),
        "texts beyond 64 MB": png(*[(b"tEXt", b"workflow\0" + bytes(10**6))] * 70),
        "text behind the pixels": png(after=((b"zTXt", b"workflow\0\0" + long),)),
        "texts without end": png((b"tEXt", b"key"), (b"zTXt", b"key\0"), (b"iTXt", b"key\0\1"), (b"zTXt", b"")),
        "broken compression": png((b"zTXt", b"mobileo-mlx\0\0" + long[:-900] + bytes(900))),
        "wrong lengths": png((b"gAMA", b""), (b"pHYs", b"1"), (b"cHRM", b""), (b"sRGB", b""), (b"acTL", b"")),
        "an animation that is none": png((b"acTL", bytes(8)), (b"fcTL", b"\xff" * 26)),
        "unknown": png((b"ruSt", b"?" * 10)),
    }
    # A checksum of what is not read.
    files["checksum"] = files["unknown"].replace(b"ruSt??????????", b"ruSt?????????!")
    for name, data in files.items():
        assert np.array_equal(np.asarray(load_image(data)), PIXELS), name
    # Pixels themselves are not passed over.
    assert take_apart(png()).data == png()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_is_packed_never_fills_the_memory(kind: bytes, tmp_path: Path) -> None:
    """A file of 4 MB whose text or profile has 4 GB."""
    packer = zlib.compressobj(9)
    begin = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    packed = begin + block * 256 + packer.flush()
    head = {b"zTXt": b"mobileo-mlx\0\0", b"iTXt": b"mobileo-mlx\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind]
    (tmp_path / "bomb.png").write_bytes(png((kind, head + packed)))
    code = f"""
import resource, sys
from mobileo_mlx.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # not less than that of the process that started this
load_image({str(tmp_path / "bomb.png")!r})
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used // (1 if sys.platform != "darwin" else 1024))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # kilobytes
    if kind != b"iCCP":
        with pytest.raises(ImageError, match="does not say how it was made"):
            read_metadata(tmp_path / "bomb.png")


def test_limits_of_pillow_stay_as_they_are() -> None:
    before = {name: value for name, value in vars(PngImagePlugin).items() if name.startswith("MAX_")}
    load_image(png((b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 10**6)))))
    assert {name: value for name, value in vars(PngImagePlugin).items() if name.startswith("MAX_")} == before
    assert before["MAX_TEXT_CHUNK"] == 2**20


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_a_broken_exif_block_counts_as_none(name: str, fmt: str) -> None:
    block = BLOCKS[name]
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, fmt, **({} if fmt == "PNG" else {"quality": 95}))
    if fmt == "PNG":
        data = png((b"eXIf", block))
    elif fmt == "JPEG":
        data = jpeg(segment(0xE1, b"Exif\0\0" + block))
    else:
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, fmt, quality=95, exif=b"Exif\0\0" + block)
        data = stream.getvalue()
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(load_image(plain.getvalue())))


@pytest.mark.parametrize(
    "data",
    [
        png((b"eXIf", exif(6, rest=b"\xff" * 90_000))),
        png((b"eXIf", exif(6, order=">"))),
        png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      32\n" + exif(6).hex().encode()))),
        png((b"tEXt", b"Raw profile type APP1\0\nAPP1\n 38\n" + (b"Exif\0\0" + exif(6)).hex().encode())),
        png((b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')),
        png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>6</tiff:Orientation>")),
        png((b"eXIf", b"broken"), (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')),
        png(after=((b"eXIf", exif(6)),)),
    ],
)
def test_orientation_alone_is_read(data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(data)), PIXELS.transpose(1, 0, 2)[:, ::-1])


def test_orientation_of_jpeg() -> None:
    upright = np.asarray(load_image(jpeg()))
    turned = upright.transpose(1, 0, 2)[:, ::-1]
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    for data in (
        jpeg(segment(0xE1, b"Exif\0\0" + exif(6, rest=b"\xff" * 60_000))),
        jpeg(segment(0xE1, b"Exif\0\0" + exif(6)), segment(0xE1, b"Exif\0\0" + exif(3))),
        jpeg(segment(0xE1, xmp)),
        jpeg(b"\xff\xff\xff", segment(0xFE, b"a comment"), b"\xff", segment(0xE1, b"Exif\0\0" + exif(6))),
    ):
        np.testing.assert_array_equal(np.asarray(load_image(data)), turned)


def test_a_jpeg_is_read_whatever_its_segments_hold() -> None:
    upright = np.asarray(load_image(jpeg()))
    for data in (
        jpeg(segment(0xE2, b"MPF\0" + b"II*\0" + b"\xff" * 50)),  # several pictures that are not there
        jpeg(segment(0xE2, b"MPF\0")),
        jpeg(segment(0xE2, b"ICC_PROFILE\0\7\1abc"), segment(0xE2, b"ICC_PROFILE\0")),
        jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 3)),
        jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff\xfe<<<")),
        jpeg(*[segment(0xEF, bytes(60_000))] * 30),
        jpeg(segment(0xFE, b"\xff" * 1000)),
    ):
        np.testing.assert_array_equal(np.asarray(load_image(data)), upright)


def tiff(entries: dict[int, tuple[int, int, int]], **options) -> bytes:
    """A TIFF file with some more entries, of a tag each: type, count, and value or offset."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "TIFF", **options)
    data = stream.getvalue()
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    own = [struct.unpack("<HHII", data[i : i + 12]) for i in range(start + 2, start + 2 + 12 * count, 12)]
    every = sorted([*own, *((tag, *entry) for tag, entry in entries.items())])
    directory = struct.pack("<H", len(every)) + b"".join(struct.pack("<HHII", *entry) for entry in every)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory + struct.pack("<I", 2**31)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("tag", [700, 33723, 34377, 34665, 34853, 40965])
@pytest.mark.parametrize("entry", [(4, 1, 8), (4, 1, 2**31), (9, 1, 2**32 - 1), (2, 4, 7), (4, 2**30, 8), (7, 0, 0)])
def test_a_tiff_is_read_whatever_its_metadata_hold(options, tag, entry) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(tiff({tag: entry}, **options))), PIXELS)
    turned = np.asarray(load_image(tiff({tag: entry, 0x0112: (3, 1, 6)}, **options)))
    np.testing.assert_array_equal(turned, PIXELS.transpose(1, 0, 2)[:, ::-1])


def test_what_would_take_long_to_decode_is_refused() -> None:
    many = 2**17
    scan = segment(0xDA, b"\1\1\0\0\x3f\0")
    slow = {
        "chunks": png(*[(b"IDAT", b"")] * many),
        "segments": jpeg(*[segment(0xE0, b"")] * (many + 1)),
        "scans": jpeg() + 101 * scan,
        "bytes": b"P1 2 2\n1 0 1 0" + bytes(2**23),
    }
    for what, data in slow.items():
        with pytest.raises(ImageError, match=f"it has more than [0-9]+ {what}"):
            load_image(data)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_comments_in_a_plain_image_take_no_time(end: bytes) -> None:
    # With Pillow alone these take minutes.
    data = b"P3 #a" + end + b"2 1 255 1 2#" + end + b"3 " + 2_000_000 * (b"#x" + end)[:4] + b"4 5 6"
    assert np.asarray(load_image(data)).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_big_tiff() -> None:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "TIFF", big_tiff=True)
    np.testing.assert_array_equal(np.asarray(load_image(stream.getvalue())), PIXELS)


def test_colours_of_jpeg_are_those_that_adobe_says() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "JPEG", quality=95)
    assert b"Adobe" in stream.getvalue()
    assert load_image(stream.getvalue()).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=9)
    # Two pictures in one file, as some cameras and phones write: the first one.
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    assert load_image(stream.getvalue()).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=9)


@pytest.mark.parametrize(
    ("data", "dropped"),
    [
        (png((b"tEXt", b"a\0b")), chunk(b"tEXt", b"a\0b")),
        (jpeg(segment(0xFE, b"ab")), segment(0xFE, b"ab")),
    ],
)
def test_files_that_end_early_are_taken_apart_as_far_as_they_go(data: bytes, dropped: bytes) -> None:
    for end in range(len(data) + 1):
        assert take_apart(data[:end]).data == data[:end].replace(dropped, b"")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (32, 16), "red").save(stream, "AVIF")
    assert load_image(stream.getvalue()).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=9)


def test_formats_that_need_something_more_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    with pytest.raises(ImageError, match=r"is a HEIC image, which needs .* `pip install 'mobileo-mlx\[heif\]'`"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(ImageError, match=r"is an AVIF image, which Pillow reads from version 11\.3 on"):
        load_image(b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf")


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    scene = Image.new("RGB", (64, 32), "red")
    scene.paste("lime", (32, 0, 64, 32))
    stream = io.BytesIO()
    block = Image.Exif()
    block[0x0112] = orientation
    pillow_heif.from_pillow(scene).save(stream, exif=block.tobytes(), quality=90)
    Image.init()
    before = dict(Image.OPEN)
    seen = load_image(stream.getvalue())
    assert before == Image.OPEN
    assert seen.size == ((64, 32) if orientation == 1 else (32, 64))
    assert seen.getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=20)
    assert seen.getpixel((seen.width - 8, seen.height - 8)) == pytest.approx((0, 255, 0), abs=20)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypavis\0\0\0\0msf1miaf", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42avc1", ""),
        (b"\xff\xff\xff\xffftypheic", "HEIC"),
        (b"\0\0\0\0ftyp", ""),
        (b"", ""),
    ],
)
def test_relatives_of_heif(head: bytes, kind: str) -> None:
    assert heif_kind(head) == kind
