"""Image files that say how they were made, and reading what they say."""

from __future__ import annotations

import errno
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mobileo_mlx.errors import ExistsError, ImageError, OutputError
from mobileo_mlx.image_settings import encode, fits, parameters_text, read_metadata, save_image, save_png
from mobileo_mlx.images import load_image

RED, BLUE = (255, 0, 0), (0, 0, 255)
METADATA: dict[str, Any] = {
    "software": "mobileo-mlx 1.0",
    "model": "/home/me/Mobile-O-0.5B",
    "prompt": "eine Café-Szene 🐱 日本 <a href=\"x\">&amp;</a>\n'two' lines",
    "negative_prompt": "dog, cat",
    "steps": 20,
    "guidance_scale": 1.5,
    "scheduler": "dpm++",
    "width": 24,
    "height": 16,
    "seed": 2**64 - 1,
    "file": "caf\udce9.png",
}


def gradient() -> Image.Image:
    y, x = np.mgrid[0:16, 0:24]
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], -1).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "a", "a.v1"])
def test_settings_come_back_from_each_format(tmp_path: Path, name: str) -> None:
    save_image(gradient(), tmp_path / name, METADATA)
    assert read_metadata(tmp_path / name) == METADATA
    with Image.open(tmp_path / name) as opened:
        assert opened.format == {".jpg": "JPEG", ".JPEG": "JPEG", ".webp": "WEBP"}.get(Path(name).suffix, "PNG")
        opened.load()
    seen = np.asarray(load_image(tmp_path / name)).astype(int)
    assert np.abs(seen - np.asarray(gradient())).max() <= (0 if opened.format == "PNG" else 40)
    assert np.abs(seen - np.asarray(gradient())).mean() < 4
    save_image(gradient(), tmp_path / f"plain{name}")
    with pytest.raises(ImageError, match="does not say how it was made"):
        read_metadata(tmp_path / f"plain{name}")


def test_other_programs_find_the_usual_text(tmp_path: Path) -> None:
    expected = (
        f"{METADATA['prompt']}\nNegative prompt: dog, cat\n"
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 1.5, Seed: 18446744073709551615, Size: 24x16, "
        "Model: Mobile-O-0.5B, Version: mobileo-mlx 1.0"
    )
    assert parameters_text(METADATA) == expected
    assert parameters_text({"seed": 1}) == ""
    assert 'Model: "a, b: c"' in parameters_text({**METADATA, "model": "/x/a, b: c"})
    for kind in ("PNG", "JPEG", "WEBP"):
        with Image.open(io.BytesIO(encode(gradient(), kind, METADATA))) as opened:
            if kind == "PNG":
                assert opened.info["parameters"] == expected
                continue
            comment = opened.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\0"
            assert comment[8:].decode("utf-16-be") == expected


def test_settings_are_ascii_so_that_no_program_can_take_them_for_something_else() -> None:
    with Image.open(io.BytesIO(encode(gradient(), "PNG", METADATA))) as opened:
        assert opened.info["mobileo-mlx"].isascii()
        assert json.loads(opened.info["mobileo-mlx"]) == METADATA


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_texts_that_another_program_wrote_again(kind: bytes, encoding: str) -> None:
    """Versions up to 0.1 wrote UTF-8, which ImageMagick puts into Latin-1's chunks as it is."""
    text = json.dumps({"prompt": "a red star, café"}, ensure_ascii=False).encode(
        "utf-8" if kind == b"iTXt" else encoding
    )
    head = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\0\0en\0key\0"}[kind]
    body = b"mobileo-mlx" + head + (zlib.compress(text) if kind == b"zTXt" else text)
    data = encode(gradient(), "PNG")
    for position in (33, data.index(b"IEND") - 4):  # in front of the pixels and behind them
        written = data[:position] + chunk(kind, body) + data[position:]
        assert read_metadata(written)["prompt"] == "a red star, café"


def test_a_jpeg_that_became_a_png() -> None:
    with Image.open(io.BytesIO(encode(gradient(), "JPEG", METADATA))) as opened:
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", opened.info["xmp"].decode())
        stream = io.BytesIO()
        opened.save(stream, "PNG", pnginfo=info)
    assert read_metadata(stream.getvalue()) == METADATA


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "says in a damaged way"),
        ("[" * 200_000, "nests too deeply"),
        ('{"seed": ' + "9" * 400 + "}", "holds a number of 400 digits"),
        ('{"guidance_scale": NaN}', "holds NaN"),
        ('{"guidance_scale": 1e999}', "too large"),
        ('{"prompt": "' + "a" * 5_000_000 + '"}', "does not say how it was made|damaged"),
    ],
)
def test_damaged_settings(tmp_path: Path, text: str, message: str) -> None:
    info = PngInfo()
    info.add_text("mobileo-mlx", text, zip=True)
    gradient().save(tmp_path / "bad.png", pnginfo=info)
    with pytest.raises(ImageError, match=message) as error:
        read_metadata(tmp_path / "bad.png")
    assert "bad.png'" in str(error.value)
    assert len(str(error.value)) < 600


def test_files_without_settings(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(ImageError, match=r"no\.png' is not an image"):
        read_metadata(tmp_path / "no.png")
    with pytest.raises(ImageError, match=r"none\.png' does not exist"):
        read_metadata(tmp_path / "none.png")


def test_what_does_not_fit_into_a_jpeg(tmp_path: Path) -> None:
    long = {**METADATA, "prompt": "日" * 20_000}
    assert not fits("JPEG", long["prompt"])
    assert fits("JPEG", METADATA["prompt"], "")
    assert fits("PNG", long["prompt"])
    with pytest.raises(OutputError, match="too long for a JPEG file"):
        save_image(gradient(), tmp_path / "a.jpg", long)
    assert list(tmp_path.iterdir()) == []
    for name in ("a.png", "a.webp"):
        save_image(gradient(), tmp_path / name, long)
        assert read_metadata(tmp_path / name) == long
    # What fits goes in, though the text for other programs may not fit beside it.
    edge = {**METADATA, "prompt": "a" * 40_000}
    assert fits("JPEG", edge["prompt"])
    save_image(gradient(), tmp_path / "b.jpg", edge)
    assert read_metadata(tmp_path / "b.jpg") == edge


def test_files_are_not_overwritten_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (2, 2), RED), path)
    with pytest.raises(ExistsError, match=r"a\.png' exists already"):
        save_png(Image.new("RGB", (2, 2), BLUE), path)
    assert load_image(path).getpixel((0, 0)) == RED
    save_png(Image.new("RGB", (2, 2), BLUE), path, overwrite=True)
    assert load_image(path).getpixel((0, 0)) == BLUE


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, r"a\.png' can't be written: the disk is full"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, kind, message) -> None:
    def write(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[:10])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(kind, match=message):
        save_png(gradient(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
