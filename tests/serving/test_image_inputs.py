"""Images of requests: what is read, and what is refused before a pixel is decoded."""

import asyncio
import base64
import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")

from mobileo_mlx.serving import image_inputs
from mobileo_mlx.serving.errors import ApiError
from mobileo_mlx.serving.image_inputs import decode_text, read_image
from mobileo_mlx.serving.settings import ServerSettings


def picture(width: int = 3, height: int = 2) -> Image.Image:
    levels = np.arange(width * height * 3, dtype=np.uint32) * 37 % 256
    return Image.fromarray(levels.astype(np.uint8).reshape(height, width, 3))


def png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(source, **settings) -> Image.Image:
    return asyncio.run(read_image(source, ServerSettings(**settings), param="image"))


def refusal(source, **settings) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(source, **settings)
    assert caught.value.status == 400
    assert caught.value.param == "image"
    return caught.value


DATA = png(picture())
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "source",
    [
        DATA,
        TEXT,
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/PNG;charset=utf-8;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"data:application/octet-stream;base64,{TEXT}",
        TEXT.rstrip("="),
        TEXT.replace("+", "-").replace("/", "_"),
        "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)) + "\n",
        f"data:image/png;base64,{TEXT.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    ],
)
def test_each_form_gives_the_same_pixels(source):
    image = read(source)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


def test_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(png(picture(4, 2), "JPEG", exif=exif)).size == (2, 4)


@pytest.mark.parametrize("name", ["{}", "file://{}", "picture:{}"])
def test_no_file_of_the_server_is_read(tmp_path, name):
    path = tmp_path / "picture.png"
    path.write_bytes(DATA)
    assert str(path) not in refusal(name.format(path)).message


def test_text_that_is_a_path_and_base64_at_once_is_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd").write_bytes(DATA)
    assert refusal("abcd").code == "invalid_image"


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png", "  HTTPS://example.org/a.png"])
def test_urls_are_refused_unless_they_are_allowed(url):
    error = refusal(url)
    assert error.code == "image_url_not_allowed"
    assert "--allow-image-urls" in error.message


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("", "invalid_image", "empty"),
        ("data:image/png;base64,", "invalid_image", "empty"),
        (b"", "invalid_image", "empty"),
        ("data:image/svg+xml,<svg/>", "invalid_base64", "not base64"),
        ("data:text/html;base64,PGI+", "invalid_image", "text/html"),
        ("ftp://example.org/a.png", "invalid_image", "ftp:"),
        ("not base64!", "invalid_base64", "not base64"),
        ("ünïcode", "invalid_base64", "not base64"),
        ("A", "invalid_base64", "not base64"),
        (b"GIF87a", "invalid_image", "PNG or JPEG"),
        (b"<html></html>", "invalid_image", "PNG or JPEG"),
        (DATA[:60], "invalid_image", "damaged"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(source, code, words):
    error = refusal(source)
    assert error.code == code
    assert words in error.message
    assert "\n" not in error.message


def declared(width: int, height: int) -> bytes:
    """A PNG that has a header, and no pixels at all."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_too_many_pixels_are_known_from_the_header():
    assert "declares 8000x5001 pixels; at most 40 million" in refusal(declared(8000, 5001)).message
    assert "damaged" in refusal(declared(8000, 5000)).message  # within the limit, so its pixels were looked for
    assert "at most 0.0001 million" in refusal(png(picture(11, 10)), max_pixels=100).message


def test_images_of_all_requests_together_have_a_limit(monkeypatch):
    monkeypatch.setattr(image_inputs, "MAX_HELD", 2 * 4 * 10 * 10)
    monkeypatch.setattr(image_inputs, "_images", image_inputs._Images())
    square = png(picture(10, 10))
    first, second = read(square), read(square)
    with pytest.raises(ApiError) as caught:
        read(square)
    assert caught.value.status == 503
    assert caught.value.headers["Retry-After"]
    del first, caught
    third = read(square)  # whose memory is that of the first
    assert third.size == second.size


def test_few_are_decoded_at_a_time_and_never_on_the_loop(monkeypatch):
    here, running, most = threading.get_ident(), 0, 0
    lock, full = threading.Lock(), threading.Barrier(2, timeout=60)

    def decode(data, max_pixels, param):
        nonlocal running, most
        assert threading.get_ident() != here
        with lock:
            running += 1
            most = max(most, running)
        full.wait()  # until there are two: none alone can pass
        with lock:
            running -= 1
        return data

    monkeypatch.setattr(image_inputs, "decode_image", decode)

    async def many():
        return await asyncio.gather(*(read_image(bytes([i]), ServerSettings(), param="image") for i in range(8)))

    assert asyncio.run(many()) == [bytes([i]) for i in range(8)]
    assert most == 2


def test_text_of_a_data_uri_is_not_quoted_in_errors():
    with pytest.raises(ApiError) as caught:
        decode_text("data:image/png;base64," + "!" * 10_000, "image")
    assert len(caught.value.message) < 200
