"""What users do wrong: one sentence, status 2, no traceback, nothing half-written. The installed command is run."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from .conftest import Run

Refused = Callable[..., str]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_declared_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares the given size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def broken(photo: Path, work: Path) -> Callable[[str], str]:
    """Makes a file that is no good as an image and returns its name."""

    def make(kind: str) -> str:
        name = {"text": "notes.png", "empty": "empty.png", "bomb": "bomb.png", "zero": "zero.png"}.get(kind, "cut.jpg")
        path = work / name
        if kind == "text":
            path.write_text("This is not an image.")
        elif kind == "empty":
            path.touch()
        elif kind == "bomb":
            path.write_bytes(png_of_declared_size(60_000, 60_000))
        elif kind == "zero":
            path.write_bytes(png_of_declared_size(0, 10))
        else:
            with Image.open(photo) as image:
                image.resize((512, 512)).save(path)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
        return name

    return make


# Images


@pytest.mark.parametrize("kind", ["text", "empty", "bomb", "zero", "truncated"])
@pytest.mark.parametrize("task", ["ask", "edit"])
def test_broken_images(refused: Refused, tiny_model: Path, broken, task: str, kind: str) -> None:
    name = broken(kind)
    assert name in refused(task, name, "What is this?", "-m", tiny_model)


@pytest.mark.parametrize("task", ["ask", "edit"])
def test_missing_image(refused: Refused, tiny_model: Path, task: str) -> None:
    assert "'nowhere.png' does not exist" in refused(task, "nowhere.png", "What is this?", "-m", tiny_model)


def test_folder_instead_of_an_image(refused: Refused, tiny_model: Path) -> None:
    assert "is a folder" in refused("ask", tiny_model, "What is this?", "-m", tiny_model)


def test_a_damaged_tiff_gets_one_sentence(refused: Refused, tiny_model: Path, photo: Path, work: Path) -> None:
    """Of which libtiff would write lines of its own."""
    with Image.open(photo) as image:
        image.save(work / "broken.tif", compression="tiff_lzw")
    data = bytearray((work / "broken.tif").read_bytes())
    data[8:200] = b"\xff" * 192
    (work / "broken.tif").write_bytes(data)
    assert "broken.tif" in refused("ask", "broken.tif", "What is this?", "-m", tiny_model)


def test_one_broken_image_among_good_ones(refused: Refused, tiny_model: Path, photo: Path, broken) -> None:
    assert "cut.jpg" in refused("ask", photo, broken("truncated"), "Which?", "-m", tiny_model)


@pytest.mark.parametrize("data", [b"", b"This is not an image."])
def test_broken_image_on_standard_input(refused: Refused, tiny_model: Path, data: bytes) -> None:
    assert "standard input" in refused("ask", "-", "What?", "-m", tiny_model, stdin=data).lower()


def rotated(photo: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def sixteen_bits(photo: Image.Image, path: Path) -> None:
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(path)


def animated(photo: Image.Image, path: Path) -> None:
    white = Image.new("RGB", photo.size, "white")
    photo.save(path, save_all=True, append_images=[white], duration=100)


UNUSUAL: dict[str, tuple[str, Callable[[Image.Image, Path], None], str]] = {
    "16-bit": ("png", sixteen_bits, "L"),
    "CMYK": ("tif", lambda photo, path: photo.convert("CMYK").save(path), "RGB"),
    "palette": ("png", lambda photo, path: photo.convert("P", palette=Image.Palette.ADAPTIVE).save(path), "RGB"),
    "alpha": ("png", lambda photo, path: photo.convert("RGBA").save(path), "RGB"),
    "EXIF-rotated": ("png", rotated, "RGB"),
    "animated": ("gif", animated, "RGB"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_images_work(command: Run, here, tiny_model: Path, photo: Path, work: Path, kind: str) -> None:
    """They give the answer that the plain image gives, so they arrive whole and right side up."""
    suffix, write, mode = UNUSUAL[kind]
    with Image.open(photo) as image:
        plain = image.convert(mode)
    plain.save(work / "plain.png")
    write(plain.convert("RGB"), work / f"unusual.{suffix}")
    options = ("What is this?", "-m", tiny_model, "--max-tokens", 12)
    done = command("ask", f"unusual.{suffix}", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == here("ask", "plain.png", *options).out


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_images_are_read_right(photo: Path, tmp_path: Path, kind: str) -> None:
    from mobileo_mlx.images import load_image

    suffix, write, mode = UNUSUAL[kind]
    with Image.open(photo) as image:
        plain = image.convert(mode).convert("RGB")
    write(plain, tmp_path / f"unusual.{suffix}")
    seen = load_image(tmp_path / f"unusual.{suffix}")
    assert np.array_equal(np.asarray(seen), np.asarray(plain))


# Texts and options


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(refused: Refused, photo: Path, prompt: str) -> None:
    # Known before the model is looked for: the default one can't be reached here.
    assert "empty" in refused("generate", prompt)
    assert "empty" in refused("generate", "-", stdin=prompt.encode())
    assert "empty" in refused("edit", photo, prompt)


def test_empty_question(refused: Refused, photo: Path, tiny_model: Path) -> None:
    assert "empty" in refused("ask", photo, " ", "-m", tiny_model)


def test_prompt_beyond_the_context(refused: Refused, photo: Path, tiny_model: Path) -> None:
    long = "many cats " * 2000
    for arguments in (["generate", long], ["edit", photo, long], ["ask", photo, long]):
        assert "context" in refused(*arguments, "-m", tiny_model)
    negative = ["--negative-prompt", long]
    assert "context" in refused("generate", "a cat", "-m", tiny_model, *negative)


def test_prompt_with_an_image_token(refused: Refused, tiny_model: Path) -> None:
    assert "<image>" in refused("generate", "a cat <image>", "-m", tiny_model)


def test_prompt_sources(refused: Refused, work: Path, photo: Path) -> None:
    (work / "latin1.txt").write_bytes("Ärger".encode("latin-1"))
    (work / "prompt.txt").write_text("a cat")
    assert "PROMPT" in refused("generate")
    assert "not both" in refused("generate", "a cat", "--prompt-file", "prompt.txt")
    assert "not both" in refused("generate", "-", "--prompt-file", "prompt.txt")
    assert "nowhere.txt" in refused("generate", "--prompt-file", "nowhere.txt")
    assert "latin1.txt" in refused("generate", "--prompt-file", "latin1.txt")
    assert "standard input" in refused("generate", "-", stdin=b"\xff")
    assert "not valid Unicode" in refused("generate", os.fsdecode(b"a \xff cat"))
    assert "INSTRUCTION" in refused("edit", photo)
    assert "standard input" in refused("edit", "-", "-")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "100x64"], "multiples of 32"),
        (["--size", "64x65"], "multiples of 32"),
        (["--size", "0x64"], "0x64"),
        (["--size", "-64x64"], "WIDTHxHEIGHT"),
        (["--size", "large"], "WIDTHxHEIGHT"),
        (["--size", "1000000x1000000"], "1000000x1000000"),
        (["--scheduler", "ddim"], "dpm++, dpm++3, euler"),
        (["--steps", "0"], "steps"),
        (["--steps", "-3"], "steps"),
        (["--steps", "100000"], "steps"),
        (["--guidance-scale", "nan"], "guidance"),
        (["--guidance-scale", "inf"], "guidance"),
        (["--guidance-scale", "-1"], "guidance"),
        (["--flow-shift", "0"], "shift"),
        (["--flow-shift", "nan"], "shift"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["-n", "0"], "--num-images"),
        (["--negative-prompt", " "], "empty"),
        (["--quantize", "dit"], "dit"),
        (["--quantize", "dit=1"], "dit=1"),
        (["--dtype", "int8"], "int8"),
        (["--output", "{sed}.png"], "{sed}"),
        (["--output", "cat.gif"], ".png"),
        (["--output", "-", "-n", "2"], "--output -"),
    ],
)
def test_options_of_drawing(refused: Refused, tiny_model: Path, options: list[str], named: str) -> None:
    assert named in refused("generate", "a cat", "-m", tiny_model, *options)


@pytest.mark.parametrize("strength", ["0", "-0.5", "1.5", "nan"])
def test_strength(refused: Refused, tiny_model: Path, photo: Path, strength: str) -> None:
    assert "strength" in refused("edit", photo, "redder", "-m", tiny_model, "--strength", strength)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--top-p", "0"], "top-p"),
        (["--top-p", "1.5"], "top-p"),
        (["--max-tokens", "0"], "tokens"),
        (["--repetition-penalty", "0"], "repetition penalty"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_options_of_answering(refused: Refused, tiny_model: Path, photo: Path, options: list[str], named: str) -> None:
    assert named in refused("ask", photo, "What is this?", "-m", tiny_model, *options)


# Checkpoints


@pytest.fixture
def damaged(tiny_model: Path, work: Path) -> Path:
    """A copy of the small model, to be damaged."""
    return shutil.copytree(tiny_model, work / "damaged")


def test_all_wrong_tensors_are_listed(refused: Refused, damaged: Path) -> None:
    file = damaged / "dit.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    missing, missing_too, reshaped = names[0], names[1], names[2]
    del tensors[missing], tensors[missing_too]
    tensors[reshaped] = np.zeros((3, 5), np.float32)
    tensors["surplus.weight"] = np.zeros(1, np.float32)
    save_file(tensors, file)
    sentence = refused("generate", "a cat", "-m", damaged)
    assert str(damaged) in sentence
    for name in (missing, missing_too, reshaped, "surplus.weight"):
        assert f"dit.{name}" in sentence
    assert "(3, 5)" in sentence
    assert "dit." in refused("convert", damaged, "new")


def test_truncated_file(refused: Refused, damaged: Path) -> None:
    file = damaged / "dit.safetensors"
    data = file.read_bytes()
    for size in (len(data) - 100, 100, 0):
        file.write_bytes(data[:size])
        assert "dit.safetensors" in refused("generate", "a cat", "-m", damaged)


def test_missing_component(refused: Refused, damaged: Path) -> None:
    (damaged / "vae_decoder.safetensors").unlink()
    assert "vae_decoder.safetensors" in refused("generate", "a cat", "-m", damaged)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": "mobileo-mlx"}', '{"model_type": "llama"}'])
def test_config_that_is_something_else(refused: Refused, damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content)
    assert str(damaged) in refused("generate", "a cat", "-m", damaged)
    assert str(damaged) in refused("info", damaged)


@pytest.mark.parametrize("content", ["", "{}", "not JSON"])
def test_damaged_tokenizer(refused: Refused, damaged: Path, content: str) -> None:
    (damaged / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in refused("generate", "a cat", "-m", damaged)


def test_missing_tokenizer(refused: Refused, damaged: Path) -> None:
    (damaged / "tokenizer.json").unlink()
    assert str(damaged) in refused("generate", "a cat", "-m", damaged)


def test_folder_that_is_something_else(refused: Refused, work: Path) -> None:
    folder = work / "papers"
    folder.mkdir()
    (folder / "thesis.txt").write_text("Once upon a time")
    for arguments in (["generate", "a cat", "-m", folder], ["info", folder], ["convert", folder, "new"]):
        assert f"'{folder}'" in refused(*arguments)


def test_model_of_another_kind(refused: Refused, work: Path) -> None:
    folder = work / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    save_file({"model.embed_tokens.weight": np.zeros((4, 8), np.float32)}, folder / "model.safetensors")
    assert f"'{folder}'" in refused("generate", "a cat", "-m", folder)


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "https://example.org/model"])
def test_model_that_does_not_exist(refused: Refused, name: str) -> None:
    assert f"'{name}'" in refused("generate", "a cat", "-m", name)


def test_hub_that_cannot_be_reached(refused: Refused) -> None:
    sentence = refused("generate", "a cat")
    assert "Amshaker/Mobile-O-0.5B" in sentence
    assert "mobileo-mlx random-model" in sentence  # the alternative that needs no network
    assert "Amshaker/Mobile-O-0.5B" in refused("info", "Amshaker/Mobile-O-0.5B", HF_HUB_OFFLINE="1")


# Places to write to


@pytest.mark.parametrize("output", ["nowhere/cat.png", "nowhere/"])
def test_output_folder_that_does_not_exist(refused: Refused, tiny_model: Path, output: str) -> None:
    assert "nowhere" in refused("generate", "a cat", "-m", tiny_model, "-o", output)


def test_output_is_checked_before_the_model_is_loaded(refused: Refused) -> None:
    assert "nowhere" in refused("generate", "a cat", "-m", "also/missing", "-o", "nowhere/cat.png")
    assert "previews" in refused("generate", "a cat", "-m", "also/missing", "--previews", "no/previews")


def test_previews_into_a_file(refused: Refused, tiny_model: Path, work: Path) -> None:
    (work / "file").touch()
    (work / "link").symlink_to("nowhere")
    for name in ("file", "link", "n" * 300):
        assert name in refused("generate", "a cat", "-m", tiny_model, "--previews", name)


@pytest.mark.parametrize("output", ["{seed:99999999999d}.png", "{seed:{seed}}.png"])
def test_names_of_impossible_width(refused: Refused, tiny_model: Path, output: str) -> None:
    assert output in refused("generate", "a cat", "-m", tiny_model, "-o", output)


@pytest.fixture
def unwritable(request: pytest.FixtureRequest, work: Path) -> Path:
    """A folder that can't be written; root may write everywhere but on a read-only file system."""
    if os.geteuid() == 0:
        return request.getfixturevalue("small_disk")("read-only")
    folder = work / "locked"
    folder.mkdir(mode=0o555)
    return folder


def test_output_folder_that_cannot_be_written(
    refused: Refused, tiny_model: Path, photo: Path, unwritable: Path
) -> None:
    model = ("-m", tiny_model)
    for arguments in (
        ["generate", "a cat", *model, "-o", unwritable / "cat.png"],
        ["generate", "a cat", *model, "--previews", unwritable],
        ["generate", "a cat", *model, "--previews", unwritable / "new"],
        ["edit", photo, "redder", *model, "-o", unwritable],
        ["convert", tiny_model, unwritable / "new"],
        ["random-model", unwritable / "new"],
    ):
        assert str(unwritable) in refused(*arguments)
    assert list(unwritable.iterdir()) == []


def test_full_disk(refused: Refused, tiny_model: Path, photo: Path, small_disk) -> None:
    disk = small_disk("full")
    model = ("-m", tiny_model, "--steps", 1)
    for arguments in (
        ["generate", "a cat", *model, "-o", disk / "cat.png"],
        ["generate", "a cat", *model, "--previews", disk],
        ["edit", photo, "redder", *model, "-o", disk / "cat.png"],
        ["convert", tiny_model, disk / "new"],
        ["random-model", disk / "new"],
    ):
        sentence = refused(*arguments)
        assert str(disk) in sentence
        assert "the disk is full" in sentence
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_disk_that_fills_while_a_chat_is_saved(command: Run, tiny_model: Path, small_disk) -> None:
    disk = small_disk("full")
    lines = f"Hello\n/save {disk}/talk.json\n"
    done = command("chat", "-m", tiny_model, "--max-tokens", 2, stdin=lines.encode())
    assert done.returncode == 0
    assert "the disk is full" in done.stderr
    assert [path.name for path in disk.iterdir()] == ["filler"]
