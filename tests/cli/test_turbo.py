"""`--speed turbo`, replays of what was drawn with it, and what is said of a model and of an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from few_steps import DRAWING, write_student

from mobileo_mlx.checkpoints.adapters import WEIGHTS_FILE
from mobileo_mlx.images import read_metadata

from .test_generate import pixels


@pytest.fixture(scope="module")
def turbo_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turbo") / "model"
    shutil.copytree(tiny_model, folder)
    write_student(folder / "turbo", folder)
    return folder


@pytest.fixture
def draw(here):
    """Draws one image, and returns its pixels."""

    def run(name: str, *arguments: object) -> bytes:
        result = here("generate", *arguments, "-o", name)
        assert (result.status, result.lines) == (0, [name]), result.err
        return pixels(name)

    return run


def test_replays_at_the_same_speed_and_at_others(draw, turbo_model: Path) -> None:
    picture = ["a cat", "-m", turbo_model, "--seed", 3]
    plain, turbo = draw("plain.png", *picture), draw("turbo.png", *picture, "--speed", "turbo")
    fast = draw("fast.png", *picture, "--speed", "fast")
    assert len({plain, turbo, fast}) == 3
    for source, expected in {"plain": plain, "turbo": turbo, "fast": fast}.items():
        assert draw("again.png", "--from-image", f"{source}.png", "--overwrite") == expected
        assert read_metadata("again.png") == read_metadata(f"{source}.png")
        for speed, other in {"default": plain, "turbo": turbo}.items():
            assert draw("other.png", "--from-image", f"{source}.png", "--speed", speed, "--overwrite") == other
            assert read_metadata("other.png") == read_metadata("plain.png" if speed == "default" else "turbo.png")
    assert draw("other.png", "--from-image", "turbo.png", "--speed", "fast", "--overwrite") == fast
    draw("longer.png", "--from-image", "turbo.png", "--steps", 5)
    assert read_metadata("longer.png") == {**read_metadata("turbo.png"), "steps": 5}


def test_a_model_without_it(here, tiny_model: Path, photo: Path) -> None:
    for arguments in (["generate", "a cat"], ["edit", photo, "make it blue"]):
        result = here(*arguments, "-m", tiny_model, "--speed", "turbo")
        assert (result.status, result.out) == (2, "")
        assert result.err == (
            "mobileo-mlx: error: speed turbo takes a few-step adapter, and this model brings none along: train one "
            "(mobileo-mlx finetune --objective consistency) and give it with --adapter, or choose fast or faster.\n"
        )


def test_lines_of_a_batch(here, draw, turbo_model: Path, tiny_model: Path) -> None:
    lines = [{"id": speed, "prompt": "a cat", "seed": 3, "speed": speed} for speed in ("turbo", "default", "turbo")]
    lines[2]["id"] = "again"
    Path("jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = here("batch", "jobs.jsonl", "--out", "out", "-m", turbo_model)
    assert result.status == 0, result.err
    turbo, plain, again = (pixels(f"out/0000/{name}.png") for name in ("turbo", "default", "again"))
    assert turbo == again == draw("turbo.png", "a cat", "-m", turbo_model, "--seed", 3, "--speed", "turbo")
    assert plain == draw("plain.png", "a cat", "-m", turbo_model, "--seed", 3)
    result = here("batch", "jobs.jsonl", "--out", "other", "-m", tiny_model)
    assert result.status == 2
    assert "speed turbo takes a few-step adapter" in result.err


def test_what_is_said_of_a_model_and_of_an_adapter(here, turbo_model: Path, tiny_model: Path) -> None:
    words = 'steps 4, guidance_scale 1.0, scheduler "euler"'
    assert f"--speed turbo: {words}" in here("info", turbo_model).lines
    assert "turbo" not in here("info", tiny_model).out
    assert json.loads(here("info", turbo_model, "--json").out)["turbo"] == DRAWING
    student = turbo_model / "turbo"
    assert here("info", student).lines[-1] == f"draws with: {words}"
    found = json.loads(here("info", student, "--json").out)
    (part,) = found["components"]
    assert (part["component"], part["rank"], found["drawing"]) == ("dit", 2, DRAWING)
    assert part["nbytes"] == 4 * part["parameters"] < (student / WEIGHTS_FILE).stat().st_size
    assert here("models", "verify", turbo_model).status == 0
