from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from mobileo_mlx.checkpoints.quantize import PRECISIONS
from mobileo_mlx.generation_options import SPEEDS
from mobileo_mlx.images import read_metadata

from .conftest import COMMAND, Run


@pytest.fixture
def draw(here, tiny_model: Path):
    """`generate` with the small model and two steps."""

    def run(*arguments: object, stdin: bytes = b""):
        result = here("generate", "-m", tiny_model, "--steps", 2, *arguments, stdin=stdin)
        assert result.status == 0, result.err
        return result

    return run


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_default_name_and_size(draw, tiny_model: Path) -> None:
    from mobileo_mlx import MobileO

    result = draw("A red cat, sitting", "--seed", 7)
    assert result.lines == ["a-red-cat-sitting-7.png"]
    with Image.open("a-red-cat-sitting-7.png") as image:
        assert image.size == MobileO.load(tiny_model).default_size
        assert image.format == "PNG"


def test_the_installed_command(command: Run, work: Path, tiny_model: Path) -> None:
    done = command("generate", "a cat", "-m", tiny_model, "--steps", 1, "--seed", 3)
    assert (done.returncode, done.stdout) == (0, "a-cat-3.png\n")
    assert re.fullmatch(r"image 1/1, seed 3: \d+x\d+, 1 steps, .*s\n", done.stderr)
    assert [path.name for path in work.iterdir()] == ["a-cat-3.png"]


def test_prompt_from_standard_input(draw) -> None:
    assert draw("-", "--seed", 1, stdin="Ärger\n".encode()).lines == ["ärger-1.png"]
    assert read_metadata("ärger-1.png")["prompt"] == "Ärger"


def test_prompt_from_a_file(draw) -> None:
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")  # as written by an editor on Windows
    assert draw("--prompt-file", "prompt.txt", "--seed", 1).lines == ["a-cat-1.png"]
    assert read_metadata("a-cat-1.png")["prompt"] == "a cat"


def test_several_seeds_and_images(draw) -> None:
    result = draw("a cat", "--seed", 5, "--seed", 9, "-n", 2)
    assert result.lines == [f"a-cat-{seed}.png" for seed in (5, 6, 9, 10)]
    assert len({pixels(path) for path in result.lines}) == 4


def test_overlapping_seeds_are_drawn_once(draw) -> None:
    assert draw("a cat", "--seed", 5, "--seed", 6, "-n", 2).lines == [f"a-cat-{seed}.png" for seed in (5, 6, 7)]


def test_a_seed_gives_the_same_image_again(draw) -> None:
    alone = draw("a cat", "--seed", 6, "-o", "alone.png").lines
    among = draw("a cat", "--seed", 5, "-n", 3, "-o", "{seed}.png").lines
    assert pixels(alone[0]) == pixels(among[1])


def test_random_seed_is_told(draw) -> None:
    first, second = draw("a cat"), draw("a cat")
    assert first.lines != second.lines
    seed = re.fullmatch(r"a-cat-(\d+)\.png", first.lines[0])
    assert seed is not None
    assert f"seed {seed[1]}" in first.err
    assert read_metadata(first.lines[0])["seed"] == int(seed[1])


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "3"],
        ["--guidance-scale", "1.0"],
        ["--guidance-scale", "4"],
        ["--scheduler", "euler"],
        ["--flow-shift", "1"],
        ["--negative-prompt", "a dog"],
        ["--quantize", "dit=4"],
    ],
)
def test_options_change_the_image(draw, options: list[str]) -> None:
    draw("a cat", "--seed", 1, "-o", "plain.png")
    draw("a cat", "--seed", 1, "-o", "other.png", *options)
    assert pixels("plain.png") != pixels("other.png")


def test_size(draw) -> None:
    draw("a cat", "--size", "96x64", "-o", "wide.png")
    with Image.open("wide.png") as image:
        assert image.size == (96, 64)


def test_dtype(draw) -> None:
    draw("a cat", "--seed", 1, "--size", "64x64", "--dtype", "bfloat16", "-o", "low.png")
    draw("a cat", "--seed", 1, "--size", "64x64", "--dtype", "float32", "-o", "high.png")
    assert pixels("low.png") != pixels("high.png")


def test_a_dtype_for_each_part_is_replayed(draw, here) -> None:
    draw("a cat", "--seed", 1, "--size", "64x64", "--dtype", "dit=float16,vae=float32", "-o", "mixed.png")
    recorded = read_metadata("mixed.png")["dtype"]
    assert recorded == "dit=float16,vae_encoder=float32,vae_decoder=float32"
    assert here("generate", "--from-image", "mixed.png", "-o", "again.png").status == 0
    assert pixels("again.png") == pixels("mixed.png")
    assert read_metadata("again.png")["dtype"] == recorded
    draw("a cat", "--seed", 1, "--size", "64x64", "--dtype", "float32", "-o", "exact.png")
    assert pixels("exact.png") != pixels("mixed.png")
    assert here("generate", "--from-image", "mixed.png", "--dtype", "float32", "-o", "other.png").status == 0
    assert read_metadata("other.png")["dtype"] == "float32"
    assert pixels("other.png") == pixels("exact.png")
    # Which is what a picture says that was drawn before there was a dtype for each part.
    assert here("generate", "--from-image", "exact.png", "-o", "old.png").status == 0
    assert pixels("old.png") == pixels("exact.png")


def test_name_pattern(draw) -> None:
    Path("out").mkdir()
    result = draw("a cat", "--seed", 4, "-n", 2, "-o", "out/{index}-{seed}-{prompt}.png")
    assert result.lines == ["out/1-4-a-cat.png", "out/2-5-a-cat.png"]


def test_nothing_is_overwritten_silently(draw) -> None:
    Path("cat.png").write_text("precious")
    assert draw("a cat", "-n", 2, "-o", "cat.png").lines == ["cat-1.png", "cat-2.png"]
    assert Path("cat.png").read_text() == "precious"


def test_overwrite(draw) -> None:
    Path("cat.png").write_text("old")
    assert draw("a cat", "-n", 2, "-o", "cat.png", "--overwrite").lines == ["cat.png", "cat-1.png"]
    assert pixels("cat.png") != pixels("cat-1.png")


def test_names_that_another_process_takes_meanwhile(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question whether a name is free and the writing: nothing that was drawn is lost."""
    from mobileo_cli import output_paths

    find = output_paths.free
    late = {Path("cat.png"), Path("steps/7-step-01.png"), Path("steps/7-contact-sheet.png")}

    def free(path: Path, **options: object) -> Path:
        found = find(path, **options)
        if found in late and Path("steps").is_dir():
            late.remove(found)
            found.write_text("somebody else's")
        return found

    monkeypatch.setattr(output_paths, "free", free)
    result = draw("a cat", "--seed", 7, "--steps", 1, "--previews", "steps", "-o", "cat.png")
    assert (result.status, result.lines) == (0, ["cat-1.png"])
    assert Path("cat.png").read_text() == "somebody else's"
    assert {path.name for path in Path("steps").iterdir()} == {
        "7-contact-sheet.png",
        "7-contact-sheet-1.png",
        "7-step-01.png",
        "7-step-01-1.png",
    }


def test_a_picture_on_standard_output(command, tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    arguments = ["generate", "a cat", "-m", str(tiny_model), "--steps", "2", "--seed", "7"]
    done = subprocess.run([str(COMMAND), *arguments, "-o", "-"], capture_output=True, cwd=work, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().startswith("image 1/1, seed 7")
    assert list(work.iterdir()) == []
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "PNG"
        shown = image.convert("RGB").tobytes()
    assert read_metadata(done.stdout)["seed"] == 7
    assert command(*arguments, "-o", "cat.png").returncode == 0
    assert pixels(work / "cat.png") == shown


@pytest.mark.parametrize("name", ["cat.jpg", "cat.webp"])
def test_other_formats_are_replayed(draw, here, name: str) -> None:
    draw("a “cat”", "--seed", 7, "-o", name)
    draw("a “cat”", "--seed", 7, "-o", "cat.png")
    again = here("generate", "--from-image", name, "-o", "again.png")
    assert (again.status, again.lines) == (0, ["again.png"])
    assert pixels("again.png") == pixels("cat.png")
    draw("a secret", "--no-metadata", "-o", f"plain-{name}")
    assert b"secret" not in Path(f"plain-{name}").read_bytes()


def test_a_prompt_that_is_too_long_for_a_jpeg(refused, tiny_model: Path, work: Path) -> None:
    (work / "long.txt").write_text("日" * 20_000)
    options = ("--prompt-file", "long.txt", "-m", tiny_model, "-o")
    assert "too long for the settings in a JPEG file" in refused("generate", *options, "cat.jpg")
    assert "shorten it" in refused("generate", *options, "cat.png")  # which only the model is too small for


def test_the_home_folder_may_be_abbreviated(draw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = draw("a cat", "--seed", 7, "--steps", 1, "--previews=~/steps", "--output=~/cat.png")
    assert result.lines == [str(tmp_path / "cat.png")]
    assert (tmp_path / "steps" / "7-step-01.png").exists()


def test_previews(draw) -> None:
    result = draw("a cat", "--seed", 7, "--previews", "steps", "-o", "cat.png", "--steps", 3)
    assert result.lines == ["cat.png"]
    assert sorted(path.name for path in Path("steps").iterdir()) == [
        "7-contact-sheet.png",
        "7-step-01.png",
        "7-step-02.png",
        "7-step-03.png",
    ]
    # What the last step predicts is the image itself.
    assert pixels("steps/7-step-03.png") == pixels("cat.png")
    assert pixels("steps/7-step-01.png") != pixels("cat.png")
    with Image.open("steps/7-contact-sheet.png") as sheet, Image.open("cat.png") as image:
        assert sheet.size == (2 * image.width, 2 * image.height)


def test_previews_are_not_overwritten_silently(draw) -> None:
    for _ in range(2):
        draw("a cat", "--seed", 7, "--previews", "steps", "--steps", 1, "-o", "cat.png")
    assert {path.name for path in Path("steps").iterdir()} == {
        "7-contact-sheet.png",
        "7-contact-sheet-1.png",
        "7-step-01.png",
        "7-step-01-1.png",
    }
    draw("a cat", "--seed", 7, "--previews", "steps", "--steps", 1, "-o", "cat.png", "--overwrite")
    assert len(list(Path("steps").iterdir())) == 4


def test_metadata_holds_all_that_is_needed(draw, tiny_model: Path) -> None:
    draw("a cat", "--seed", 7, "--size", "64x96", "--scheduler", "euler", "--negative-prompt", "dog", "-o", "cat.png")
    metadata = read_metadata("cat.png")
    expected = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "seed": 7,
        "steps": 2,
        "guidance_scale": 1.5,
        "scheduler": "euler",
        "flow_shift": 3.0,
        "width": 64,
        "height": 96,
        "model": str(tiny_model),
    }
    assert {name: metadata[name] for name in expected} == expected


def test_no_metadata(draw) -> None:
    draw("a secret", "--no-metadata", "-o", "cat.png")
    data = Path("cat.png").read_bytes()
    assert b"mobileo" not in data
    assert b"secret" not in data


def test_replay(draw, here) -> None:
    options = ["--size", "64x96", "--scheduler", "euler", "--negative-prompt", "a dog", "--guidance-scale", "2"]
    draw("a cat", "--seed", 7, "--quantize", "dit=8", "--flow-shift", "2", *options, "-o", "first.png")
    again = here("generate", "--from-image", "first.png", "-o", "again.png")
    assert (again.status, again.lines) == (0, ["again.png"])
    assert pixels("again.png") == pixels("first.png")
    assert read_metadata("again.png") == read_metadata("first.png")


def test_a_speed_and_a_guidance_interval(draw, here) -> None:
    speed = SPEEDS["fast"]
    # The fixture's two steps are given, too, and so they win.
    draw(
        "a cat",
        "--seed",
        7,
        "--precision",
        "small",
        "--speed",
        "fast",
        "--guidance-interval",
        "0.3,0.9",
        "-o",
        "first.png",
    )
    metadata = read_metadata("first.png")
    assert (metadata["steps"], metadata["guidance_interval"]) == (2, [0.3, 0.9])
    assert metadata["quantize"] == PRECISIONS["small"]
    assert here("generate", "--from-image", "first.png", "-o", "again.png").status == 0
    assert read_metadata("again.png") == metadata
    assert pixels("again.png") == pixels("first.png")
    # A speed that is asked for counts more than what an image was made with.
    assert here("generate", "--from-image", "first.png", "--speed", "fast", "-o", "other.png").status == 0
    assert read_metadata("other.png") == {
        **metadata,
        "steps": speed["steps"],
        "guidance_interval": list(speed["guidance_interval"]),
    }


def test_presets_are_the_old_spelling(draw) -> None:
    new = draw("a cat", "--seed", 7, "--precision", "small", "--speed", "fast", "-o", "new.png")
    old = draw("a cat", "--seed", 7, "--preset", "small,fast", "-o", "old.png")
    assert read_metadata("old.png") == read_metadata("new.png")
    assert [line for line in old.err.splitlines() if "preset" in line] == [
        "note: --preset is now --precision small --speed fast."
    ]
    assert "preset" not in new.err


def test_older_metadata_know_no_guidance_interval(draw, here, work: Path) -> None:
    from mobileo_mlx.images import save_png

    draw("a cat", "--seed", 7, "-o", "new.png")
    metadata = read_metadata("new.png")
    with Image.open("new.png") as image:
        save_png(image, work / "old.png", {k: v for k, v in metadata.items() if k != "guidance_interval"})
    assert here("generate", "--from-image", "old.png", "-o", "again.png").status == 0
    assert read_metadata("again.png") == metadata


def test_replay_with_other_options(draw, here) -> None:
    draw("a cat", "--seed", 7, "--negative-prompt", "a dog", "-o", "first.png")
    changed = here("generate", "a bird", "--from-image", "first.png", "--steps", 1, "--seed", 8, "-o", "other.png")
    assert changed.status == 0, changed.err
    metadata = read_metadata("other.png")
    assert (metadata["prompt"], metadata["steps"], metadata["seed"]) == ("a bird", 1, 8)
    assert metadata["negative_prompt"] == "a dog"


def test_replay_for_more_images(draw, here) -> None:
    draw("a cat", "--seed", 7, "-o", "first.png")
    assert here("generate", "--from-image", "first.png", "-n", 3).lines == [f"a-cat-{seed}.png" for seed in (7, 8, 9)]


def test_replay_without_the_negative_prompt(draw, here) -> None:
    draw("a cat", "--seed", 7, "--negative-prompt", "a dog", "-o", "first.png")
    draw("a cat", "--seed", 7, "-o", "plain.png")
    assert here("generate", "--from-image", "first.png", "--negative-prompt", "", "-o", "again.png").status == 0
    assert pixels("again.png") == pixels("plain.png") != pixels("first.png")


def test_verbose(draw) -> None:
    quiet = draw("a cat")
    verbose = draw("a cat", "-v")
    assert len(quiet.err.splitlines()) == 1
    _, details = verbose.err.splitlines()
    assert re.search(r"denois\w* [\d.]+ s", details)
    assert re.search(r"peak memory [\d.]+ [kMG]?B( and .* in MLX's cache)?$", details)


def test_progress_bar_in_a_terminal(environment: dict[str, str], work: Path, tiny_model: Path) -> None:
    reading, writing = pty.openpty()
    done = subprocess.run(
        [str(COMMAND), "generate", "a cat", "-m", str(tiny_model), "--steps", "3", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=writing,
        cwd=work,
        env=environment,
    )
    shown = os.read(reading, 100_000).decode()
    os.close(writing)
    os.close(reading)
    assert done.stdout == b"a-cat-1.png\n"
    assert re.search(r"image 1/1, seed 1 \[#+\.+\] 2/3, [\d.]+ s left", shown)


def test_foreign_metadata_is_refused(refused, work: Path) -> None:
    from mobileo_mlx.images import save_png

    image = Image.new("RGB", (8, 8))
    image.save(work / "foreign.png")
    assert "foreign.png" in refused("generate", "--from-image", "foreign.png")
    save_png(image, work / "damaged.png", {"prompt": 3, "seed": 1})
    assert "damaged.png: its metadata has no valid prompt" in refused("generate", "--from-image", "damaged.png")
    save_png(image, work / "edited.png", {"task": "edit", "prompt": "redder", "seed": 1})
    assert "'edit'" in refused("generate", "--from-image", "edited.png")


SENT = {"software": "mobileo-mlx 0.1.0", "task": "generate", "prompt": "a cat", "seed": 7, "steps": 1}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "evil/repo"}, "give --model evil/repo to download it"),
        ({"model": "evil/repo@main"}, "give --model evil/repo@main to download it"),
        ({"adapter": "evil/lora"}, "give --adapter evil/lora to download it"),
        ({"adapter": ["evil/lora"]}, "give --adapter evil/lora to download it"),
        ({"model": 3}, "no valid model"),
        ({"model": "a" * 5000}, "no valid model"),
        ({"adapter": [3]}, "no valid adapter"),
        ({"adapter": [["x"]]}, "no valid adapter"),
        ({"adapter_scale": True}, "no valid adapter_scale"),
        ({"quantize": {"llm": 4.5}}, "no valid quantize"),
        ({"task": ["generate"]}, "no valid task"),
        ({"seed": True}, "no valid seed"),
        ({"seed": -1}, "no valid seed"),
        ({"seed": 2**64}, "no valid seed"),
        ({"seed": 10**299}, "no valid seed"),
        ({"steps": 2**63}, "no valid steps"),
        ({"steps": 2.5}, "no valid steps"),
        ({"steps": {}}, "no valid steps"),
        ({"guidance_scale": "high"}, "no valid guidance_scale"),
        ({"guidance_scale": 10**299}, "no valid guidance_scale"),
        ({"guidance_interval": [0, 1, 2]}, "no valid guidance_interval"),
        ({"guidance_interval": {"low": 0}}, "no valid guidance_interval"),
        ({"flow_shift": 1e300}, "no valid flow_shift"),
        ({"scheduler": "none"}, "no valid scheduler"),
        ({"width": 10**299}, "each side is"),
        ({"prompt": " "}, "no valid prompt"),
        ({"prompt": "\ud800"}, "no valid prompt"),
        ({"prompt": "a", "negative_prompt": [1]}, "no valid negative_prompt"),
        ({"dtype": "none"}, "dtype 'none' is unknown"),
        ({"model": "/nowhere/model"}, "'/nowhere/model' is no folder"),
    ],
)
def test_a_picture_that_somebody_sent(here, work: Path, changed: dict[str, object], named: str) -> None:
    from mobileo_mlx.images import save_png

    save_png(Image.new("RGB", (8, 8)), work / "sent.png", {**SENT, "model": "tiny", **changed})
    result = here("generate", "--from-image", "sent.png", "-o", "out.png")
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1), result.err
    assert named in result.err
    assert len(result.err) < 500


def test_what_a_picture_loads_is_noted(here, work: Path, tiny_model: Path) -> None:
    from mobileo_mlx.images import save_png

    save_png(Image.new("RGB", (8, 8)), work / "sent.png", {**SENT, "model": "evil/repo"})
    result = here("generate", "--from-image", "sent.png", "-m", tiny_model, "-o", "out.png")
    assert (result.status, "note" in result.err) == (0, False)
    save_png(Image.new("RGB", (8, 8)), work / "known.png", {**SENT, "model": str(tiny_model)})
    result = here("generate", "--from-image", "known.png", "-o", "out.png")
    assert result.err.startswith(f"note: as 'known.png' says, it is made with the model '{tiny_model}'.\n")


def test_metadata_is_json(draw) -> None:
    draw("a “cat” 🐈", "-o", "cat.png")
    with Image.open("cat.png") as image:
        assert json.loads(image.info["mobileo-mlx"])["prompt"] == "a “cat” 🐈"
