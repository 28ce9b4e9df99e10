"""The bundled model `tiny` on a GPU: all parts at once, on trained weights, judged and compared with the CPU."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from judged import answered_right, drawn_right, edited_right
from PIL import Image
from processes.sitecustomize import device

from benchmarks.shapes.questions import QUESTION_TYPES, sample_question
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO

from .devices import cpu, largest_error

STEPS = 10


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_draws_answers_and_edits(dtype: str | None) -> None:
    """In this device's own precision, and in each of the others."""
    model = MobileO.load("tiny", dtype=dtype)
    assert drawn_right(model, 8, steps=STEPS) >= 0.75
    assert answered_right(model, 32) >= 0.85
    assert edited_right(model, 5, steps=STEPS) >= 0.6


@pytest.mark.skipif(device() != "gpu", reason="half precision in few bits takes minutes on a CPU")
@pytest.mark.parametrize("bits", [8, 4])
def test_in_few_bits(bits: int) -> None:
    model = MobileO.load("tiny", quantize={"all": bits})
    assert drawn_right(model, 4, steps=STEPS) >= 0.75
    assert answered_right(model, 16) >= 0.85


def test_a_seed_draws_what_it_draws_on_a_cpu() -> None:
    def drawn() -> tuple[mx.array, Image.Image]:
        result = MobileO.load("tiny", dtype="float32").generate("a red star", steps=STEPS, seed=3)
        mx.eval(result.latents)
        return result.latents, result.images[0]

    latents, image = drawn()
    with cpu():
        expected, picture = drawn()
    assert largest_error(latents, expected) <= 1e-3
    assert np.abs(np.asarray(image, np.int16) - np.asarray(picture, np.int16)).max() <= 2


def test_answers_are_those_of_a_cpu() -> None:
    rng = np.random.default_rng(7)
    questions = [sample_question(rng, kind) for kind in QUESTION_TYPES]

    def answers() -> list[str]:
        model = MobileO.load("tiny", dtype="float32")
        return [model.ask(Image.fromarray(render(q.scene)), q.text, max_tokens=48).text for q in questions]

    on_gpu = answers()
    with cpu():
        assert on_gpu == answers()
