"""The bundled model `emoji` draws what its card says. Its judge needs packages of npm: only colours are looked at."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mobileo_weights import bundled
from PIL import Image

from benchmarks.emoji.world import BACKGROUNDS, SIDE
from mobileo_mlx import MobileO

MODEL = "emoji"
PROGRAM = [sys.executable, "-c", "from mobileo_cli.main import main; main()"]
RED = (213, 40, 60)  # an apple's


@pytest.fixture(scope="module")
def model() -> MobileO:
    return MobileO.load(MODEL, dtype="float32")


def distance(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Of the mean of some pixels, in any of the three channels."""
    return float(np.abs(pixels.reshape(-1, 3).mean(axis=0) - colour).max())


def background_of(image: Image.Image) -> str:
    corners = np.asarray(image)[[2, 2, -3, -3], [2, -3, 2, -3]]
    return min(BACKGROUNDS, key=lambda name: distance(corners, BACKGROUNDS[name]))


def middle(image: Image.Image) -> np.ndarray:
    half = slice(SIDE // 2 - 12, SIDE // 2 + 12)
    return np.asarray(image)[half, half]


def test_the_readme_s_first_command(tmp_path: Path) -> None:
    prompt = "a red apple on a blue background"
    assert f'generate "{prompt}" --model {MODEL}' in (Path(__file__).parents[1] / "README.md").read_text()
    command = [*PROGRAM, "generate", prompt, "--model", MODEL, "--output", "apple.png"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (SIDE, SIDE)
        assert background_of(image) == "blue"
        assert distance(middle(image), RED) < 40


def test_draws_on_the_background_that_is_asked_for(model: MobileO) -> None:
    images = {name: model.generate(f"a green apple on a {name} background", seed=3).images[0] for name in BACKGROUNDS}
    assert sum(background_of(image) == name for name, image in images.items()) >= len(BACKGROUNDS) - 1
    red, green, blue = np.mean([middle(image).mean(axis=(0, 1)) for image in images.values()], axis=0)
    assert green > red > blue


def test_sees_the_background(model: MobileO) -> None:
    names = ("pink", "green", "black", "yellow")
    images = [model.generate(f"an owl on a {name} background", seed=1, steps=10).images[0] for name in names]
    answers = [model.ask(image, "what color is the background?").text for image in images]
    assert sum(map(str.__eq__, answers, names)) >= 3


def test_says_what_it_sees(model: MobileO) -> None:
    kinds = {"a red apple": "a fruit", "a guitar": "an instrument", "an owl": "a bird", "a tulip": "a flower"}
    images = {name: model.generate(f"{name} on a blue background", seed=1).images[0] for name in kinds}
    assert sum(model.ask(image, "what is it?").text == name for name, image in images.items()) >= 3
    kind = "what kind of thing is it?"
    assert sum(model.ask(image, kind).text == kinds[name] for name, image in images.items()) >= 3


def test_is_small() -> None:
    folder = bundled()[MODEL]
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weights <= 24e6
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - weights <= 2e6
