"""Colour profiles, made here byte by byte as ICC.1 defines them, against the formulas that they stand for."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from mobileo_mlx.color import to_srgb
from mobileo_mlx.images import load_image

# The primaries as XYZ, adapted to D50, one row each.
SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])
D50 = (0.9642, 1.0, 0.8249)


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(space: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    table, body, position = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", position + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", position + len(body), bytes(4), 0x02400000, kind, space, pcs)
    header += bytes(12) + b"acsp" + bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + table + body


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    tags = {b"%cXYZ" % c: b"XYZ \0\0\0\0" + fixed(*row) for c, row in zip(b"rgb", primaries, strict=True)}
    return icc(b"RGB ", {**tags, **{b"%cTRC" % c: curve(gamma) for c in b"rgb"}})


def grey_profile(gamma: float) -> bytes:
    return icc(b"GRAY", {b"kTRC": curve(gamma)})


def cmyk_profile() -> bytes:
    """A table of the 16 corners, in which full magenta is a dark green and all else is white."""
    identity = bytes(range(256))
    corners = b"".join(bytes([100, 90, 160]) if corner == 0b0100 else bytes([255, 128, 128]) for corner in range(16))
    matrix = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + corners + identity * 3
    return icc(b"CMYK", {b"A2B0": table}, kind=b"prtr", pcs=b"Lab ")


def srgb_of(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


COLORS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def saved(image: Image.Image, fmt: str, profile: bytes, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, fmt, icc_profile=profile, **options)
    return stream.getvalue()


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB])
@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_wide_colours_are_converted(primaries, fmt, options):
    linear = (COLORS / 255) ** (563 / 256) @ primaries @ np.linalg.inv(SRGB)
    data = saved(Image.fromarray(COLORS), fmt, rgb_profile(primaries, 563 / 256), **options)
    seen = np.asarray(load_image(data)).astype(float)
    assert np.abs(seen - srgb_of(linear)).max() < 2.5
    assert np.abs(seen - COLORS).max() > 20
    np.testing.assert_array_equal(np.asarray(load_image(data, background=None)), COLORS)  # as in the original


def test_profiles_of_jpeg_in_several_pieces():
    profile = rgb_profile(ADOBE_RGB, 563 / 256)
    long = bytearray(profile + bytes(200_000))
    long[:4] = struct.pack(">I", len(long))
    image = Image.new("RGB", (16, 16), (40, 180, 60))
    short, several = (load_image(saved(image, "JPEG", bytes(one), quality=100)) for one in (profile, long))
    expected = srgb_of((np.array([40, 180, 60]) / 255) ** (563 / 256) @ ADOBE_RGB @ np.linalg.inv(SRGB))
    assert np.abs(np.array(short.getpixel((8, 8))) - expected).max() < 4
    assert short.tobytes() == several.tobytes()


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_grey_profiles(alpha, deep):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(levels.astype(np.uint16) * 257) if deep else Image.fromarray(levels)
    if alpha and not deep:
        image.putalpha(255)
    seen = np.asarray(load_image(saved(image, "PNG", grey_profile(1.5)))).astype(float)
    assert np.abs(seen - srgb_of((levels / 255) ** 1.5)[..., None]).max() < 3


def test_cmyk_profiles():
    image = Image.new("CMYK", (8, 8), (0, 255, 0, 0))
    assert load_image(saved(image, "JPEG", b"")).getpixel((4, 4)) == pytest.approx((255, 0, 255), abs=8)
    red, green, blue = load_image(saved(image, "TIFF", cmyk_profile())).getpixel((4, 4))
    assert green > red + 60 > blue
    assert load_image(saved(Image.new("CMYK", (8, 8)), "TIFF", cmyk_profile())).getpixel((4, 4)) == (255, 255, 255)


def test_srgb_is_left_as_it_is():
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None):
        image = Image.fromarray(COLORS)
        assert to_srgb(image, profile) is image


@pytest.mark.parametrize(
    "profile",
    [b"", b"acsp", bytes(200), cmyk_profile(), grey_profile(2.2), rgb_profile(DISPLAY_P3, 2.2)[:300], b"\xff" * 4000],
)
def test_profiles_that_are_broken_or_for_other_colours_count_as_none(profile):
    np.testing.assert_array_equal(np.asarray(load_image(saved(Image.fromarray(COLORS), "PNG", profile))), COLORS)


def test_an_image_is_converted_once():
    once = load_image(saved(Image.fromarray(COLORS), "PNG", rgb_profile(ADOBE_RGB, 2.2)))
    assert load_image(once).tobytes() == once.tobytes()
