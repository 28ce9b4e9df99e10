"""A model learns a colour from a folder of plain pictures with texts beside them; docs/dataset.md has the figures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
from mobileo_cli.main import main

from benchmarks.shapes.data import write_pictures
from benchmarks.shapes.questions import QUESTION_TYPES
from benchmarks.shapes.score import caption_samplers, score_answers, score_drawing
from mobileo_mlx import MobileO
from mobileo_mlx.training.loop import StepReport
from mobileo_mlx.training.options import Options
from mobileo_mlx.training.stages import stage_named
from mobileo_mlx.training.trainer import FinetuneRun


def build(folder: Path, count: int, *options: str) -> Path:
    """A folder of pictures, half of which show and name brown, and the data that become of it."""
    pictures = write_pictures(folder / "pictures", count, new="brown", edits=0.25)
    out = folder / "data.jsonl"
    assert (
        main(["dataset", "build", str(pictures), "--out", str(out), "--describe", "describe the image.", *options]) == 0
    )
    return out


def test_losses_fall(tmp_path, tiny_model):
    """The whole way, but for a few steps of an untrained model on a few pictures."""
    data = build(tmp_path, 8)
    stage = stage_named("lora").adjusted(batch_size=2, learning_rate=3e-3, warmup=0.0)
    run = FinetuneRun.prepare(data, tiny_model, Options(stage=stage, steps=12, held_out=0.0))
    losses = []
    for event in run.start(tmp_path / "adapter"):
        if isinstance(event, StepReport):
            losses.append(event.metrics["answer_loss"])
            if event.step == 12:  # before pictures are drawn
                break
    assert fmean(losses[-3:]) < 0.85 * fmean(losses[:2])


def scores(adapter: Path | None, count: int = 50) -> dict[str, float]:
    """How often brown is drawn and answered right, and all that `tiny` knows already."""
    model = MobileO.load("tiny", adapter=adapter)
    parts = {"draw": score_drawing(model, count, new="brown"), "ask": score_answers(model, count, new="brown")}
    rows = {task: {row.name: row for part in found for row in part.rows} for task, found in parts.items()}
    kinds = {"draw": caption_samplers(), "ask": dict.fromkeys((*QUESTION_TYPES, "held-out pairs"))}
    old = {task: [rows[task][name].accuracy for name in kinds[task]] for task in rows}
    brown = {f"{task} brown": rows[task]["brown"].accuracy for task in rows}
    return {**brown, **{f"{task} old": fmean(some) for task, some in old.items()}}


@pytest.mark.slow
def test_a_colour_is_learned_and_nothing_forgotten(tmp_path):
    data = build(tmp_path, 200)
    options = "--steps 600 --learning-rate 3e-4 --flow-shift 6 --sample-every 600"
    arguments = ["finetune", "--model", "tiny", "--quadruplets", str(data), "--out", str(tmp_path / "adapter")]
    assert main([*arguments, *options.split()]) == 0
    before, after = scores(None), scores(tmp_path / "adapter")
    print(before, after, sep="\n")
    assert before["draw brown"] < 0.1
    assert after["draw brown"] > 0.5
    assert after["draw old"] > before["draw old"] - 0.06
    assert after["ask old"] > before["ask old"] - 0.06
