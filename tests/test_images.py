import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image, ImageFile

from mobileo_mlx import images
from mobileo_mlx.errors import ImageError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    """A whole PNG file of some dozen bytes whose header promises much more."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def loaded(source, **options) -> np.ndarray:
    # What Pillow warns of must not reach the user's terminal.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = images.load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


# Sources


def test_paths_bytes_and_pillow_images_are_the_same_door(tmp_path):
    expected = np.asarray(gradient())
    path = tmp_path / "a b.png"
    gradient().save(path)
    for source in (path, str(path), path.read_bytes(), gradient()):
        np.testing.assert_array_equal(loaded(source), expected)


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    gradient().save(tmp_path / "a.png")
    assert loaded("~/a.png").shape == (16, 24, 3)


def test_open_files_and_buffers_are_read_from_their_beginning(tmp_path):
    expected = np.asarray(gradient())
    data = encoded(gradient(), "PNG")
    stream = io.BytesIO(data)
    for source in (stream, stream, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(loaded(source), expected)
    (tmp_path / "a.png").write_bytes(data)
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(loaded(file), expected)


class OfTorch:
    """As an array of another library: NumPy makes its own of it."""

    def __array__(self, dtype=None, copy=None):
        return np.asarray(gradient())


def test_arrays_of_pixels_are_images():
    expected = np.asarray(gradient())
    for source in (expected, expected[:, ::-1][:, ::-1], mx.array(expected), OfTorch()):
        np.testing.assert_array_equal(loaded(source), expected)
    for wrong in (expected.astype(np.float32), expected[..., :1], expected[None], np.array(None)):
        with pytest.raises(TypeError, match=r"an array of an image is \(H, W, 3\) and uint8; this one is \("):
            loaded(wrong)


@pytest.mark.parametrize("source", [None, 3, (i for i in ()), object(), {"a": 1}])
def test_what_is_no_image_at_all_is_a_type_error(source):
    with pytest.raises(TypeError, match="an image is a path, the bytes of a file"):
        loaded(source)


def test_a_file_opened_for_text_is_a_type_error(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with open(tmp_path / "a.txt") as file, pytest.raises(TypeError, match="opened for reading bytes"):
        loaded(file)


def test_a_pipe_that_a_shell_hands_over_can_be_read(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, encoded(gradient(), "PNG"))
    os.close(writing)
    try:
        np.testing.assert_array_equal(loaded(f"/dev/fd/{reading}"), np.asarray(gradient()))
    finally:
        os.close(reading)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pipe' is not a regular file"):
        loaded(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("https://example.org/a.png", "'https://example.org/a.png' is a URL"),
        (Path("https://example.org/a.png"), "'https://example.org/a.png' is a URL"),
        (Path("file:///home/a.png"), "'file:///home/a.png' is a URL"),
        ("data:image/png;base64,iVBORw0KGgo", "is a URL"),
    ],
)
def test_urls_are_called_that(source, named):
    with pytest.raises(ImageError, match=named):
        loaded(source)


def test_a_pillow_image_stays_the_callers(tmp_path):
    source = gradient()
    images.load_image(source).putpixel((0, 0), RED)
    assert source.getpixel((0, 0)) != RED


# Orientation and modes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_the_right_side_up(orientation, fmt):
    # What a camera stores, for each orientation, when the scene is `upright`.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.new("RGB", (32, 16), RED)
    upright.paste(GREEN, (16, 0, 32, 8))
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = loaded(encoded(stored, fmt, exif=exif))
    assert result.shape == (16, 32, 3)
    assert np.abs(result[4, 24].astype(int) - GREEN).max() < 60  # JPEG and WebP lose a little
    assert np.abs(result[12, 24].astype(int) - RED).max() < 60
    assert np.abs(result[4, 8].astype(int) - RED).max() < 60


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_greyscale_of_16_bits_is_scaled(fmt):
    levels = np.array([[0, 128, 129, 256, 32768, 65400, 65535]], dtype=np.uint16)
    result = loaded(encoded(Image.fromarray(levels), fmt))
    assert result[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 128, 254, 255)]


def test_greyscale_of_32_bits_counts_as_16_bits():
    levels = Image.fromarray(np.array([[-5, 0, 257, 65535, 70000]], dtype=np.int32))
    assert levels.mode == "I"
    assert loaded(levels)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("bits", "kind", "dtype", "levels", "expected"),
    [
        (16, 1, "<u2", [0, 257, 65535], [0, 1, 255]),
        (32, 1, "<u4", [0, 2**31, 2**32 - 1], [0, 128, 255]),
        (32, 1, "<u4", [0, 257, 65535], [0, 1, 255]),
        (32, 3, "<f4", [0.0, 0.5, 1.0], [0, 128, 255]),
    ],
)
def test_greyscale_of_tiff_is_what_its_tags_say(bits, kind, dtype, levels, expected):
    data = np.array(levels, dtype).tobytes()
    assert loaded(grey_tiff(bits, kind, 1, len(levels), data))[0, :, 0].tolist() == expected
    if (bits, kind) != (32, 1):  # which Pillow reads in no other way
        turned = loaded(grey_tiff(bits, kind, 0, len(levels), data))[0, :, 0].astype(int)
        assert np.abs(turned - (255 - np.array(expected))).max() <= 1


def test_greyscale_of_12_bits_is_scaled():
    assert loaded(grey_tiff(12, 1, 1, 2, bytes([0x80, 0x0F, 0xFF])))[0, :, 0].tolist() == [128, 255]


def grey_tiff(bits: int, kind: int, photometric: int, width: int, data: bytes) -> bytes:
    """A TIFF file of one row; photometric 0 means that 0 is white."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(data), 339: kind}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0, -1.0], [0, 128, 255, 0]),
        ([0.0, 100.0, 255.0, np.nan], [0, 100, 255, 0]),
        ([0.0, 257.0, 65535.0, np.inf], [0, 1, 255, 0]),
    ],
)
def test_floating_point_greyscale_is_scaled_by_what_it_holds(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert loaded(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_colour_modes(mode, color, expected):
    assert loaded(Image.new(mode, (2, 2), color))[0, 0].tolist() == list(expected)


def test_cmyk_jpeg():
    result = loaded(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(result[8, 8].astype(int) - RED).max() < 10


@pytest.mark.parametrize(
    ("mode", "color", "white", "blue", "beneath"),
    [
        ("LA", (77, 0), (255, 255, 255), (0, 0, 255), (77, 77, 77)),
        ("LA", (100, 51), (224, 224, 224), (20, 20, 224), (100, 100, 100)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255), (0, 0, 255), (10, 20, 30)),
        ("RGBA", (200, 0, 0, 51), (244, 204, 204), (40, 0, 204), (200, 0, 0)),
        ("La", (20, 51), (224, 224, 224), (20, 20, 224), (100, 100, 100)),
        ("RGBa", (40, 0, 0, 51), (244, 204, 204), (40, 0, 204), (200, 0, 0)),
    ],
)
def test_transparent_pixels_lie_over_a_background(mode, color, white, blue, beneath):
    image = Image.new(mode, (2, 2), color)
    assert loaded(image)[0, 0].tolist() == list(white)
    assert loaded(image, background="blue")[0, 0].tolist() == list(blue)
    assert loaded(image, background=None)[0, 0].tolist() == list(beneath)  # as in the original


def test_a_palette_with_an_alpha_channel():
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *GREEN])
    image.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert image.mode == "PA"
    assert loaded(image)[0].tolist() == [[255] * 3, list(BLUE)]
    assert loaded(image, background=None)[0].tolist() == [list(BLUE)] * 2


@pytest.mark.parametrize(("transparency", "seen"), [(0, [(255, 255, 255), GREEN]), (b"\x00\x80", None)])
def test_palettes_with_transparency(transparency, seen):
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *GREEN])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=transparency)
    assert loaded(data)[0].tolist() == [list(color) for color in seen or [(255, 255, 255), (127, 255, 127)]]
    assert loaded(data, background=None)[0].tolist() == [list(BLUE), list(GREEN)]


@pytest.mark.parametrize(
    ("pixels", "transparency"),
    [
        (np.array([[[9, 9, 9], [1, 2, 3]]], np.uint8), (9, 9, 9)),
        (np.array([[9, 1]], np.uint8), 9),
        (np.array([[9 * 257, 257]], np.uint16), 9 * 257),
    ],
)
def test_a_colour_that_is_transparent(pixels, transparency):
    image = Image.fromarray(pixels)
    data = encoded(image, "PNG", transparency=transparency)
    assert loaded(data)[0, 0].tolist() == [255] * 3
    np.testing.assert_array_equal(loaded(data)[0, 1], loaded(image)[0, 1])
    np.testing.assert_array_equal(loaded(data, background=None), loaded(image))


@pytest.mark.parametrize(("fmt", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_animations_give_their_first_frame(fmt, options):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert loaded(data)[0, 0].tolist() == list(RED)


# What can't be loaded


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"'.*file\.png' is empty"),
        (b"Dear diary, " * 20, r"'.*file\.png' is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image that can be read"),
        (encoded(gradient(200, 200), "JPEG")[:2000], r"'.*file\.png' is damaged or cut short"),
        (encoded(gradient(200, 200), "PNG")[:700], r"'.*file\.png' is damaged or cut short"),
        (encoded(gradient(200, 200), "WEBP")[:300], "is damaged or cut short|is not an image that can be read"),
        (png_that_declares(50000, 50000), r"'.*file\.png' declares too many pixels; at most 134 million"),
        (png_that_declares(12000, 12000), r"'.*file\.png' declares 12000x12000 pixels; at most 134 million"),
        (png_that_declares(131073, 1), r"'.*file\.png' declares 131073x1 pixels; .* 131072 on a side"),
        (png_that_declares(0, 5), r"'.*file\.png' is not an image that can be read"),
    ],
)
def test_files_that_are_no_usable_images(tmp_path, content, message):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        loaded(path)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    for side in (12000, 50000):
        with pytest.raises(ImageError, match="make it smaller first"):
            loaded(png_that_declares(side, side))


def test_sources_that_are_no_files(tmp_path):
    with pytest.raises(ImageError, match="' is a folder; name an image in it"):
        loaded(tmp_path)
    with pytest.raises(ImageError, match=r"'.*none\.png' does not exist; check the name"):
        loaded(tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"can't be read \(File name too long\)"):
        loaded("a" * 300)
    with pytest.raises(ImageError, match=r"can't be read \(embedded null"):
        loaded("a\0b")
    with pytest.raises(ImageError, match=r"can't be read \(File name too long\)") as error:
        loaded("iVBORw0KGgo" * 1000)  # an image in base64 that was taken for a path
    assert len(str(error.value)) < 12000


def test_a_file_that_may_not_be_read(monkeypatch, tmp_path):
    # The superuser may read anything, so the system's answer is replaced.
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(ImageError, match=r"a\.png' can't be read \(Permission denied\)"):
        images.load_image(tmp_path / "a.png")


def test_a_file_that_would_fill_the_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("mobileo_mlx.image_sources.MAX_BYTES", 2**20)
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBP")
        file.truncate(2**40)  # takes no place
    with pytest.raises(ImageError, match=r"a\.webp' is too large"):
        images.load_image(tmp_path / "a.webp")


def test_messages_name_what_has_no_path():
    with pytest.raises(ImageError, match=r"^The image on standard input is empty"):
        images.load_image(b"", name="the image on standard input")
    with pytest.raises(ImageError, match=r"^The image has no pixels"):
        images.load_image(Image.new("RGB", (0, 4)))


def test_a_colour_mode_that_pillow_can_not_convert(monkeypatch):
    def convert(*_):
        raise ValueError("conversion from LAB to RGB not supported")  # up to Pillow 11

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ImageError, match=r"^The image has the colour mode LAB, which can't be read; save it as RGB"):
        images.load_image(Image.new("LAB", (4, 4)))


# Sizes and arrays


def test_padding_is_black_and_in_the_middle():
    square = np.asarray(images.pad_to_square(Image.new("RGB", (7, 4), RED)))
    assert square.shape == (7, 7, 3)
    rows = [square[y].max() > 0 for y in range(7)]
    assert rows == [False, True, True, True, True, False, False]


def test_preprocess_gives_unit_range_and_no_normalisation():
    pixels = images.preprocess(Image.new("RGB", (40, 20), (255, 128, 0)), 32)
    assert pixels.shape == (1, 32, 32, 3)
    assert pixels.dtype == mx.float32
    assert pixels[0, 16, 16].tolist() == [1.0, np.float32(128) / np.float32(255), 0.0]
    assert pixels[0, 0, 0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", [(61, 37), (37, 61), (64, 64), (96, 32), (32, 97), (500, 3)])
@pytest.mark.parametrize("target", [(32, 32), (64, 32), (32, 96)])
def test_cover_crop_covers(size, target):
    cropped = images.cover_crop(Image.new("RGB", size, RED), *target)
    assert cropped.size == target
    # Nothing of the black that lies outside of the image.
    assert np.asarray(cropped)[..., 0].min() == 255


def test_resizing_is_bicubic_and_truncates_the_long_side():
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    covering = image.resize((158, 96), Image.Resampling.BICUBIC)  # 96 * 61 / 37 = 158.3
    np.testing.assert_array_equal(
        np.asarray(images.cover_crop(image, 96, 96)), np.asarray(covering.crop((31, 0, 127, 96)))
    )
    upright = image.transpose(Image.Transpose.TRANSPOSE)
    covering = upright.resize((96, 158), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        np.asarray(images.cover_crop(upright, 96, 96)), np.asarray(covering.crop((0, 31, 96, 127)))
    )
    square = np.zeros((61, 61, 3), dtype=np.uint8)
    square[12:49] = noise
    resized = np.asarray(Image.fromarray(square).resize((40, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.array(images.preprocess(image, 40))[0], resized.astype(np.float32) / 255)


@pytest.mark.parametrize("size", [(301, 7), (7, 301), (300, 1), (1, 300), (200, 200), (173, 171), (97, 301)])
@pytest.mark.parametrize("target", [16, 25, 32])
def test_long_images_are_resized_without_their_square(monkeypatch, size, target):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    plain = np.array(images.preprocess(image, target))
    assert plain.max() > 0
    monkeypatch.setattr(images, "_LARGEST_SQUARE", 0)
    monkeypatch.setattr(images, "_STRIP", 3000)
    monkeypatch.setattr(images, "pad_to_square", lambda _: pytest.fail("the square was made"))
    difference = np.abs(np.array(images.preprocess(image, target)) - plain) * 255
    assert difference.max() < 2.01  # what is between the two passes is rounded in another order
    assert difference.mean() < 0.1


def test_a_long_strip_takes_little_memory():
    """Its square would have 2**34 pixels."""
    code = """
import resource, sys
from PIL import Image
from mobileo_mlx import images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = images.preprocess(Image.new("RGB", (131072, 100), "red"), 1024)
assert pixels.max().item() > 0
pixels = images.preprocess(Image.new("RGB", (100, 131072), "red"), 1024)
assert pixels.max().item() > 0
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(used // (1 if sys.platform != "darwin" else 1024))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000  # kilobytes


def test_an_image_too_narrow_to_cover():
    with pytest.raises(ImageError, match=r"too narrow \(16384x1\) to fill 512x512 pixels; crop it first"):
        images.cover_crop(Image.new("RGB", (16384, 1)), 512, 512)


def test_cover_crop_keeps_the_centre():
    image = Image.new("RGB", (90, 30), RED)
    image.paste(GREEN, (30, 0, 60, 30))
    assert np.asarray(images.cover_crop(image, 30, 30)).reshape(-1, 3).tolist() == [list(GREEN)] * 900


def test_arrays_there_and_back():
    image = gradient()
    signed = images.to_signed(image)
    assert signed.shape == (1, 16, 24, 3)
    assert signed.min().item() >= -1
    assert signed.max().item() <= 1
    (back,) = images.from_array(signed)
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


def test_arrays_are_cut_off_and_rounded():
    values = mx.array([-3.0, -1.0, 0.0, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1, 1.0, 9.0], dtype=mx.float32)
    first, second = images.from_array(mx.broadcast_to(values[None, None, :, None], (2, 1, 7, 3)))
    assert np.asarray(first)[0, :, 0].tolist() == [0, 0, 128, 100, 101, 255, 255]
    assert second.size == (7, 1)
    (half,) = images.from_array(mx.zeros((1, 2, 2, 3), dtype=mx.bfloat16))
    assert half.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_arrays_that_are_not_finite_are_a_bug(value):
    with pytest.raises(ValueError, match="not finite"):
        images.from_array(mx.full((1, 2, 2, 3), value))


def test_contact_sheet():
    tiles = [Image.new("RGB", (4, 3), color) for color in (RED, GREEN, BLUE)]
    sheet = images.contact_sheet(tiles, 2)
    assert sheet.size == (8, 6)
    corners = [sheet.getpixel(point) for point in ((0, 0), (4, 0), (0, 3), (4, 3))]
    assert corners == [RED, GREEN, BLUE, (0, 0, 0)]
    assert images.contact_sheet(tiles, 9).size == (12, 3)
    with pytest.raises(ValueError, match="at least one"):
        images.contact_sheet([], 2)


def test_importing_costs_nothing():
    code = (
        "import sys, mobileo_mlx.images, mobileo_mlx.prompts, mobileo_mlx.tokenizer, mobileo_mlx.files;"
        "print([name for name in ('PIL', 'numpy', 'mlx.core', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The original


def test_every_case_of_the_reference(reference):
    from safetensors.numpy import load_file

    folder = reference / "tiny" / "goldens"
    goldens = load_file(folder / "preprocess.safetensors")
    for name, case in json.loads((folder / "preprocess.json").read_text())["cases"].items():
        image = images.load_image(folder / case["params"]["png"], background=None)
        full = np.round(np.array(images.preprocess(image, 1024))[0] * 255).astype(np.uint8)
        assert hashlib.sha256(full.tobytes()).hexdigest() == case["params"]["pixels_1024_u8_hwc_sha256"]
        np.testing.assert_array_equal(np.array(images.preprocess(image, 1024))[0], full.astype(np.float32) / 255)
        expected = {
            "rgb": np.asarray(image),
            "square": np.asarray(images.pad_to_square(image)),
            "pixels_1024_u8_stride16": full[8::16, 8::16].transpose(2, 0, 1),
            "pixels_1024_u8_patch": full[480:544, 400:464].transpose(2, 0, 1),
        }
        for key, info in case["tensors"].items():
            kind, _, size = key.rpartition("_")
            if kind == "pixel_values":
                ours = np.array(images.preprocess(image, int(size))).transpose(0, 3, 1, 2)
            elif kind == "train":
                cropped = images.cover_crop(image, int(size), int(size))
                ours = np.array(images.to_signed(cropped))[0].transpose(2, 0, 1)
            else:
                ours = expected[key]
            np.testing.assert_array_equal(ours, goldens[info["key"]], err_msg=f"{name}/{key}", strict=True)
