from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mobileo_mlx.images import read_metadata

from .test_generate import pixels


@pytest.fixture
def edit(here, tiny_model: Path):
    """`edit` with the small model and two steps."""

    def run(*arguments: object, stdin: bytes = b""):
        result = here("edit", "-m", tiny_model, "--steps", 2, *arguments, stdin=stdin)
        assert result.status == 0, result.err
        return result

    return run


def test_edit(edit, photo: Path) -> None:
    assert edit(photo, "Make it red", "--seed", 7).lines == ["make-it-red-7.png"]
    metadata = read_metadata("make-it-red-7.png")
    assert (metadata["prompt"], metadata["seed"], metadata["steps"]) == ("Make it red", 7, 2)


def test_image_from_standard_input(edit, photo: Path) -> None:
    edit(photo, "red", "--seed", 7, "-o", "file.png")
    edit("-", "red", "--seed", 7, "-o", "piped.png", stdin=photo.read_bytes())
    assert pixels("file.png") == pixels("piped.png")


def test_instruction_from_elsewhere(edit, photo: Path) -> None:
    edit(photo, "red", "--seed", 7, "-o", "argument.png")
    edit(photo, "-", "--seed", 7, "-o", "piped.png", stdin=b"red\n")
    Path("instruction.txt").write_text("red\n")
    edit(photo, "--prompt-file", "instruction.txt", "--seed", 7, "-o", "file.png")
    assert pixels("argument.png") == pixels("piped.png") == pixels("file.png")


def test_the_image_matters(edit, photo: Path) -> None:
    Image.new("RGB", (64, 64), "white").save("white.png")
    edit(photo, "red", "--seed", 7, "-o", "photo.png")
    edit("white.png", "red", "--seed", 7, "-o", "other.png")
    assert pixels("photo.png") != pixels("other.png")


def test_strength(edit, photo: Path) -> None:
    for strength in ("0.4", "0.9", "1"):
        edit(photo, "red", "--seed", 7, "--steps", 12, "--strength", strength, "-o", f"{strength}-.png")
    edit(photo, "red", "--seed", 7, "--steps", 12, "-o", "noise.png")
    assert len({pixels(path) for path in Path().glob("*-.png")}) == 3
    assert read_metadata("0.4-.png")["strength"] == 0.4
    assert read_metadata("noise.png").get("strength") is None


def test_size(edit, photo: Path) -> None:
    edit(photo, "red", "--size", "96x64", "--steps", 4, "--strength", "0.5", "-o", "wide.png")
    with Image.open("wide.png") as image:
        assert image.size == (96, 64)


def test_previews_are_of_the_steps_that_run(edit, photo: Path) -> None:
    edit(photo, "red", "--seed", 7, "--steps", 4, "--strength", "0.5", "--previews", "steps", "-o", "red.png")
    steps = sorted(path.name for path in Path("steps").glob("*step*"))
    assert 1 <= len(steps) < 4
    assert pixels(f"steps/{steps[-1]}") == pixels("red.png")


def test_replay(edit, here, photo: Path) -> None:
    edit(photo, "red", "--seed", 7, "--steps", 4, "--strength", "0.6", "-o", "first.png")
    again = here("edit", photo, "--from-image", "first.png", "-o", "again.png")
    assert again.status == 0, again.err
    assert pixels("again.png") == pixels("first.png")
    assert "another image" not in again.err
    assert read_metadata("again.png") == read_metadata("first.png")


def test_replay_with_another_image(edit, here, photo: Path) -> None:
    Image.new("RGB", (64, 64), "white").save("white.png")
    edit(photo, "red", "--seed", 7, "-o", "first.png")
    again = here("edit", "white.png", "--from-image", "first.png", "-o", "again.png")
    assert again.status == 0
    assert "note: 'first.png' was made from another image than 'white.png'." in again.err.splitlines()
    assert read_metadata("first.png")["image"] == "photo.png"


def test_replay_of_a_drawing_is_refused(here, refused, tiny_model: Path, photo: Path) -> None:
    here("generate", "a cat", "-m", tiny_model, "--steps", 1, "-o", "cat.png")
    assert "'generate'" in refused("edit", photo, "--from-image", "cat.png")
