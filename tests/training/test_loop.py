from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from mobileo_mlx.atomic import TEMPORARY_PREFIX
from mobileo_mlx.checkpoints.tensor_files import write_tensors
from mobileo_mlx.errors import CheckpointError, OutputError, TrainingError
from mobileo_mlx.training import run_state
from mobileo_mlx.training.guard import DivergenceGuard
from mobileo_mlx.training.loop import StepReport, TrainingLoop
from mobileo_mlx.training.run_state import checkpoints, locked, read_metrics


def loss(model: nn.Module, x: mx.array, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    noise = mx.random.normal(x.shape, key=key)
    error = ((model(x + 0.1 * noise) - 2 * x) ** 2).mean()
    return error, {"error": error}


def batches(step: int, part: int) -> mx.array:
    return mx.random.normal((4, 3), key=mx.random.key(100 * step + part))


def fit(folder: Path | None = None, **changes: Any) -> TrainingLoop:
    mx.random.seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm(8), nn.Linear(8, 3))
    decayed = optim.AdamW(lambda step: 0.05 / (1 + 0.1 * step), weight_decay=0.1, bias_correction=True)
    groups = optim.MultiOptimizer([decayed, optim.AdamW(0.02)], [lambda name, _: name.endswith("weight")])
    settings: dict[str, Any] = {"steps": 9, "batch_size": 8, "accumulate": 2, "save_every": 2, "folder": folder}
    parts = {"model": model, "loss": loss, "batches": batches, "optimizer": groups}
    return TrainingLoop(**{**parts, **settings, **changes})


def summary(reports: list[StepReport]) -> list[tuple[int, float, float]]:
    return [(report.step, report.loss, report.grad_norm) for report in reports]


def test_the_loss_falls() -> None:
    reports = list(fit(steps=60).run())
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert [report.step for report in reports] == list(range(1, 61))
    assert reports[0].metrics.keys() == {"error"}
    assert reports[0].samples_per_second > 0


def test_the_compiled_update_changes_no_loss() -> None:
    compiled = summary(list(fit().run()))
    mx.disable_compile()
    try:
        plain = summary(list(fit().run()))
    finally:
        mx.enable_compile()
    assert np.allclose(compiled, plain, rtol=1e-6)


def test_a_compiled_loss_changes_no_step() -> None:
    compiled, plain = fit(compiled=True), fit()
    assert np.allclose(summary(list(compiled.run())), summary(list(plain.run())), rtol=1e-5)
    for name, value in plain.arrays()["model"].items():
        assert np.allclose(value, compiled.arrays()["model"][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("killed_after", [1, 3, 4])
def test_resuming_is_exact(tmp_path: Path, killed_after: int, ema: float | None) -> None:
    whole = fit(tmp_path / "whole", ema=ema)
    expected = summary(list(whole.run()))
    run = fit(tmp_path / "killed", ema=ema).run()
    for _ in range(killed_after):
        next(run)
    run.close()  # as a kill does, it leaves what is on disk
    again = fit(tmp_path / "killed", ema=ema)
    found = summary(list(again.run()))
    start = killed_after // 2 * 2
    assert found == expected[start:]
    for name, value in whole.arrays()["model"].items():
        assert (again.arrays()["model"][name] == value).all(), name
    if ema is not None:
        assert whole.averages.keys() == again.averages.keys() == whole.arrays()["ema"].keys()
        assert all((again.averages[name] == value).all() for name, value in whole.averages.items())
    lines = read_metrics(tmp_path / "killed")
    assert [(line["step"], line["loss"], line["grad_norm"]) for line in lines] == expected


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    run = fit(tmp_path).run()
    for _ in range(3):
        next(run)
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (tmp_path / f"{TEMPORARY_PREFIX}abc").mkdir()
    list(fit(tmp_path).run())
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 10))
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    run = fit(tmp_path).run()
    next(run)
    run.close()
    assert summary(list(fit(tmp_path).run())) == summary(list(fit().run()))
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 10))


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    list(fit(tmp_path).run())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000008", "step-0000009"]


def test_other_settings_are_named(tmp_path: Path) -> None:
    list(fit(tmp_path, settings={"rate": 1, "same": [1, 2]}).run())
    list(fit(tmp_path, settings={"rate": 1, "same": (1, 2)}).run())
    with pytest.raises(CheckpointError, match=r"other settings \(seed 0 there, 3 here, rate 1 there, 2 here\)"):
        list(fit(tmp_path, settings={"rate": 2, "same": [1, 2]}, seed=3).run())


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path) -> None:
    list(fit(tmp_path).run())
    file = checkpoints(tmp_path)[-1] / run_state.STATE_FILE
    file.write_text(json.dumps({"step": json.loads(file.read_text())["step"], "describe": {}}))
    with pytest.raises(CheckpointError, match="another version of this program"):
        list(fit(tmp_path).run())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    list(fit(tmp_path).run())
    (checkpoints(tmp_path)[-1] / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"step-0000009' is damaged .* remove it"):
        list(fit(tmp_path).run())


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    def broken(step: int, part: int) -> mx.array:
        return batches(step, part) * (float("nan") if step == 4 else 1.0)

    names = []

    def bad_samples(step: int) -> str:
        names.append(step)
        return "line 7"

    run = fit(tmp_path, batches=broken, bad_samples=bad_samples).run()
    with pytest.raises(TrainingError, match=r"At step 5 the loss is nan .* look at line 7"):
        list(run)
    assert names == [4]
    assert checkpoints(tmp_path)[-1].name == "step-0000004"
    # What was kept is sound.
    assert [report.step for report in fit(tmp_path).run()] == [5, 6, 7, 8, 9]


def test_a_loss_that_grows_stops() -> None:
    def grown(step: int, part: int) -> mx.array:
        return batches(step, part) * (1.0 if step < 30 else 2.0 ** (step - 30))

    run = fit(steps=100, batches=grown, guard=DivergenceGuard()).run()
    with pytest.raises(
        TrainingError, match=r"At step 4\d the loss grows, from .* in the mean; lower the learning rate\.$"
    ):
        list(run)


def test_a_run_can_be_stopped(tmp_path: Path) -> None:
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    assert len(list(fit(tmp_path, stop=stop).run())) == 3
    assert checkpoints(tmp_path)[-1].name == "step-0000003"
    assert summary(list(fit(tmp_path).run())) == summary(list(fit().run()))[3:]


def test_something_can_be_done_before_each_step() -> None:
    seen: list[int] = []
    list(fit(steps=3, before_step=seen.append).run())
    assert seen == [0, 1, 2]


def test_a_folder_is_for_one_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(OutputError, match="is in use by another training"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(path: Path, arrays: dict[str, mx.array], **how: Any) -> None:
        calls.append(path)
        if len(calls) == 4:  # the second file of the second checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(path, arrays, **how)

    monkeypatch.setattr(run_state, "write_tensors", full)
    with pytest.raises(OutputError, match="step-0000004"):
        list(fit(tmp_path).run())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000002"]
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
    monkeypatch.undo()
    assert summary(list(fit(tmp_path).run())) == summary(list(fit().run()))[2:]


def test_metrics_are_json(tmp_path: Path) -> None:
    (report,) = fit(tmp_path, steps=1).run()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert replace(report, metrics={}) == StepReport(**{**line, "metrics": {}})
