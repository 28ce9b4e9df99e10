"""The objective "consistency": a student that draws in few steps, taught by the model itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints.adapters import Adapter
from mobileo_mlx.diffusion import denoise
from mobileo_mlx.errors import OptionError
from mobileo_mlx.schedulers import make_scheduler
from mobileo_mlx.training import batches as batches_module
from mobileo_mlx.training.consistency import STATES, StudentBatch
from mobileo_mlx.training.events import Evaluated, Finished, SamplesWritten
from mobileo_mlx.training.loop import StepReport
from mobileo_mlx.training.options import Options
from mobileo_mlx.training.stages import STAGES
from mobileo_mlx.training.trainer import FinetuneRun

from .conftest import losses, options

Prepare = Callable[..., FinetuneRun]


@pytest.fixture
def student(prepared: Prepare) -> Prepare:
    def prepare(**changes: object) -> FinetuneRun:
        return prepared("student", **{"objective": "consistency", "teacher_steps": 4, "dropout": 0.0, **changes})

    return prepare


def test_a_whole_run(student: Prepare, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_latents(*_: object) -> mx.array:
        raise AssertionError("a student learns what the teacher draws, not the images of the data")

    monkeypatch.setattr(batches_module, "encode_latents", no_latents)
    run, out = student(dtype="float32"), tmp_path / "out"
    before = {name: np.array(value) for name, value in tree_flatten(run.model.parts.dit.parameters())}
    events = list(run.start(out))
    assert [type(event) for event in events] == [StepReport] * 4 + [Evaluated, SamplesWritten, Finished]
    trained = {name for name, _ in tree_flatten(run.network.trainable_parameters())}
    assert trained
    assert all(name.startswith("dit.") and ".lora_" in name for name in trained)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["drawing"] == {"steps": 4, "guidance_scale": 1.0, "scheduler": "dpm++"}
    assert Adapter.open(out).components == {"dit"}
    # The teacher is the model as it was.
    teacher = dict(tree_flatten(run._teacher.parameters()))
    assert teacher.keys() == before.keys()
    assert all(np.array_equal(teacher[name], value) for name, value in before.items())
    with Image.open(out / "samples" / "0000004.png") as sheet:
        drawing = config["drawing"]
        sample = run.held_out[0]
        drawn = run.model.generate(sample.prompt, seed=0, **drawing).images[0]
        assert np.array_equal(np.asarray(sheet.convert("RGB"))[: drawn.height, : drawn.width], np.asarray(drawn))
    taught = MobileO.load(tiny_model, adapter=out, dtype="float32").generate("a cat", seed=1, **drawing).latents
    plain = MobileO.load(tiny_model, dtype="float32").generate("a cat", seed=1, **drawing).latents
    assert not np.allclose(taught, plain, atol=1e-4)


@pytest.mark.parametrize(("turn", "steps", "done"), [(turn, *state) for turn, state in enumerate(STATES)])
def test_what_a_student_learns_from(student: Prepare, turn: int, steps: int, done: int) -> None:
    """Its own latents, and where the guided teacher's path ends that starts there; here both are the same network."""
    run = student(dtype="float32", teacher_steps=8, guidance_scale=2.0)
    _ = run.network
    batch = run.batches(0, 0)
    learned = run._learned(batch, turn)
    assert isinstance(learned, StudentBatch)
    text, unconditional = run._distillation._texts(batch)
    shift = run.model.config.flow_shift
    own = make_scheduler("dpm++", steps, shift)
    x = batch.noise
    for step in denoise(run._teacher, own, x, text):
        if step.step <= done:
            x = step.latents
    assert np.allclose(learned.latents, x, atol=1e-5)
    assert learned.sigma == pytest.approx(float(own.sigmas[done]))
    fine = make_scheduler("dpm++3", 8, shift)
    start = int(np.argmin(np.abs(fine.sigmas - learned.sigma)))
    assert fine.sigmas[start] == pytest.approx(learned.sigma, rel=1e-5)
    *_, last = denoise(run._teacher, fine, x, text, unconditional=unconditional, guidance_scale=2.0, start=start)
    assert np.allclose(x - learned.sigma * learned.velocity, last.latents, atol=1e-4)


def test_what_guidance_leads_away_from_is_what_drawing_leads_away_from(student: Prepare) -> None:
    run = student(dtype="float32", held_out=0.0)
    sample = next(sample for sample in run.data.samples if sample.source_image is None)
    position = next(step for step in range(2) if sample.name in run.batches.names(step))
    batch = run.batches(position, 0)
    row = batch.names.index(sample.name)
    _, unconditional = run._distillation._texts(batch)
    model, noise = run.model, batch.noise[row : row + 1]
    (drawn,) = model.generate(sample.prompt, initial_latents=noise, steps=1, guidance_scale=3.0).latents
    text, _ = run._distillation._texts(batch)
    *_, last = denoise(
        run._teacher, make_scheduler("dpm++", 1, model.config.flow_shift), batch.noise, text,
        unconditional=unconditional, guidance_scale=3.0,
    )  # fmt: skip
    assert np.allclose(last.latents[row], drawn, atol=1e-3)


def test_a_student_comes_nearer_to_its_teacher(student: Prepare, tmp_path: Path) -> None:
    run = student(steps=4 * len(STATES), count=4, held_out=0.0, dtype="float32", rank=8, alpha=16.0, sample_every=1000)
    found = losses(list(run.start(tmp_path / "out")))
    rounds = np.array(found).reshape(-1, len(STATES)).mean(axis=1)
    assert rounds[-1] < 0.8 * rounds[0], found


def test_stopping_and_resuming_is_exact(student: Prepare, tmp_path: Path) -> None:
    expected = losses(list(student(dropout=0.1).start(tmp_path / "whole")))
    asked = iter([False, False, True])
    first = losses(list(student(dropout=0.1).start(tmp_path / "out", stop=lambda: next(asked))))
    assert first + losses(list(student(dropout=0.1).start(tmp_path / "out", resume=True))) == expected


def test_all_of_the_network_can_be_trained(quadruplets: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    stage = STAGES["student"].adjusted(dit="full", batch_size=4, learning_rate=1e-3)
    chosen = options(
        stage=stage, objective="consistency", teacher_steps=4, dtype="bfloat16", recompute=True, accumulate=2
    )
    run = FinetuneRun.prepare(quadruplets(8), tiny_model, chosen)
    _ = run.network
    before = {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(run._teacher.parameters())}
    list(run.start(tmp_path / "out"))
    assert Adapter.open(tmp_path / "out").components == {"dit"}
    after = {name: np.array(value.astype(mx.float32)) for name, value in tree_flatten(run._teacher.parameters())}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    changed = dict(tree_flatten(run.network.dit.parameters()))
    assert not np.array_equal(before["proj_out.weight"], changed["proj_out.weight"].astype(mx.float32))


def test_options_that_do_not_fit_are_refused(prepared: Prepare) -> None:
    assert Options(objective="consistency").stage == STAGES["student"]
    for changes, words in (
        ({"objective": "guess"}, "objective 'guess' is unknown"),
        ({"objective": "consistency", "stage": STAGES["lora"]}, "trains the DiT and nothing else"),
        ({"objective": "consistency", "stage": STAGES["student"].adjusted(llm="lora")}, "trains the DiT and nothing"),
        ({"objective": "consistency", "stage": STAGES["student"].adjusted(dit="frozen")}, "trains the DiT and nothing"),
        ({"objective": "consistency", "flow_shift": 3.0}, "neither a layout nor flow_shift nor cond_dropout"),
        ({"objective": "consistency", "cond_dropout": 0.1}, "neither a layout nor flow_shift nor cond_dropout"),
        ({"objective": "consistency", "layout": "upstream"}, "neither a layout nor flow_shift nor cond_dropout"),
        (
            {"objective": "consistency", "teacher_steps": 10},
            "10 steps of the teacher are not possible; .* multiple of 4",
        ),
        ({"objective": "consistency", "guidance_scale": 0.5}, "guidance_scale 0.5 makes no sense"),
    ):
        with pytest.raises(OptionError, match=words):
            Options(**changes)  # type: ignore[arg-type]
    assert options("lora").objective == "flow"
