"""A model learns a colour from a folder of plain pictures with texts beside them; docs/dataset.md has the figures."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from mobileo_cli.main import main

from benchmarks.shapes.data import write_pictures
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
