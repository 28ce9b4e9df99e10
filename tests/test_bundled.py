"""The bundled model draws, answers and edits as it is asked to: all parts at once, on trained weights.

Counts are multiples of the kinds of samples, and small: a drawing takes a second where there is no fast BLAS.
"""

import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from judged import answered_right, drawn_right, edited_right
from mobileo_weights import bundled
from PIL import Image

from benchmarks.shapes.data import write_quadruplets
from benchmarks.shapes.scorer import read_picture, satisfies
from benchmarks.shapes.text import Spec
from mobileo_mlx import MobileO
from mobileo_mlx.schedulers import SCHEDULERS

MODEL = "tiny"
STEPS = 10  # half the default: enough for the small model
PROGRAM = [sys.executable, "-c", "from mobileo_cli.main import main; main()"]
PROMPT = "a red star to the left of a blue square"
SPEC = Spec((("star", "red"), ("square", "blue")), relation="to the left of")


@pytest.fixture(scope="module")
def model() -> MobileO:
    return MobileO.load(MODEL, dtype="float32")


def test_draws(model: MobileO) -> None:
    assert drawn_right(model, 12) >= 0.8


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_draws_with_every_sampler(model: MobileO, scheduler: str) -> None:
    assert drawn_right(model, 8, scheduler=scheduler, steps=STEPS) >= 0.75


def test_answers(model: MobileO) -> None:
    assert answered_right(model, 64) >= 0.9


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_edits_with_every_sampler(model: MobileO, scheduler: str) -> None:
    assert edited_right(model, 5, scheduler=scheduler, steps=STEPS) >= 0.8


def test_draws_and_edits_in_few_steps(model: MobileO) -> None:
    # Without the adapter, two steps without guidance draw half of it.
    assert drawn_right(model, 12, speed="turbo", steps=2) >= 0.8
    assert edited_right(model, 5, speed="turbo") >= 0.8


def test_one_picture_answers_for_the_other(model: MobileO) -> None:
    # Its own drawing is what it is asked about, edits, and is asked about again.
    star = model.generate("a red star", seed=1).images[0]
    assert model.ask(star, "what color is the star?").text == "red"
    blue = model.edit(star, "make the star blue", seed=1).images[0]
    assert model.ask(blue, "what color is the star?").text == "blue"


@pytest.mark.parametrize("bits", [8, 4])
def test_in_few_bits(bits: int) -> None:
    quantized = MobileO.load(MODEL, dtype="float32", quantize={"all": bits})
    assert drawn_right(quantized, 8, steps=STEPS) >= 0.75
    assert answered_right(quantized, 32) >= 0.85
    assert edited_right(quantized, 5, steps=STEPS) >= 0.6


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short finetuning leaves."""
    folder = tmp_path_factory.mktemp("finetuning")
    data = write_quadruplets(folder / "data", 8, seed=5)
    options = ["--model", MODEL, "--quadruplets", str(data), "--out", str(folder / "adapter"), "--steps", "4"]
    subprocess.run([*PROGRAM, "finetune", *options], check=True, timeout=300, capture_output=True)
    return folder / "adapter"


def test_with_an_adapter(model: MobileO, adapter: Path) -> None:
    adapted = MobileO.load(MODEL, dtype="float32", adapter=adapter)
    plain, changed = (one.generate(PROMPT, seed=0) for one in (model, adapted))
    assert not mx.array_equal(plain.latents, changed.latents)
    assert drawn_right(adapted, 8, steps=STEPS) >= 0.75
    assert answered_right(adapted, 16) >= 0.85


def test_draws_by_the_command(tmp_path: Path) -> None:
    command = [*PROGRAM, "generate", PROMPT, "--model", MODEL, "--output", "star.png"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120, env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    assert satisfies(read_picture(np.asarray(Image.open(tmp_path / "star.png"))), SPEC)


def test_is_small() -> None:
    folder = bundled()[MODEL]
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    turbo = sum(size for path, size in sizes.items() if path.parent.name == "turbo")
    assert turbo <= 3e6
    assert sum(sizes.values()) - turbo <= 15e6


@pytest.mark.timing
def test_loads_at_once() -> None:
    begin = time.process_time()
    loaded = MobileO.load(MODEL, dtype="float32")
    for component in ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit", "vae_decoder"):
        mx.eval(loaded.parts[component].parameters())
    assert time.process_time() - begin < 1
