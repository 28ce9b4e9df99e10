"""Runs that go on: after a kill, with more steps, from an adapter, and not on something else than before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints import digests
from mobileo_mlx.checkpoints.adapters import Adapter
from mobileo_mlx.errors import CheckpointError, OptionError, OutputError, TrainingError
from mobileo_mlx.training import run_state, trainer
from mobileo_mlx.training.events import Evaluated, Event, Finished, Notice, SamplesWritten
from mobileo_mlx.training.guard import DivergenceGuard
from mobileo_mlx.training.loop import StepReport
from mobileo_mlx.training.run_state import checkpoints, read_metrics
from mobileo_mlx.training.schedule import Schedule
from mobileo_mlx.training.stages import warmup_cosine
from mobileo_mlx.training.trainer import FinetuneRun

from .conftest import losses

Prepare = Callable[..., FinetuneRun]


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample sheets show one sample, or in most tests none: drawing takes longer than all else."""
    monkeypatch.setattr(trainer, "_SAMPLES", 1)
    monkeypatch.setattr(trainer, "can_plot", lambda: False)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(trainer, "write_samples", write_nothing)


def write_nothing(model: MobileO, samples: Any, folder: Path, step: int, questions: bool, drawing: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{step:07d}.json").write_text("[]")
    return folder / f"{step:07d}.png"


def until(events: Iterator[Event], condition: Callable[[Event], bool]) -> list[Event]:
    """The events up to one, after which the run ends as if it was killed: nothing is written any more."""
    found = []
    for event in events:
        found.append(event)
        if condition(event):
            break
    events.close()  # type: ignore[attr-defined]
    return found


def at_step(step: int, kind: type = StepReport) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, kind) and event.step == step


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All but the speed."""
    lines = read_metrics(folder)
    return [{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run that have to be the same."""
    kept = (".safetensors", ".png", ".json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in kept and path.name != "loss.png"
    }


@pytest.mark.parametrize("drawn", [True])
@pytest.mark.parametrize(("step", "kind"), [(2, StepReport), (4, Evaluated), (4, StepReport)])
def test_evaluations_that_a_kill_prevented_are_made_up_for(
    prepared: Prepare, tmp_path: Path, step: int, kind: type, drawn: bool
) -> None:
    def run(folder: Path, resume: bool = False) -> Iterator[Event]:
        return prepared("align", sample_every=2).start(folder, resume=resume)

    list(run(tmp_path / "whole"))
    until(run(tmp_path / "out"), at_step(step, kind))
    rest = list(run(tmp_path / "out", resume=True))
    assert [type(event) for event in rest[:2]] == [Notice, Evaluated if kind is StepReport else SamplesWritten]
    assert metrics(tmp_path / "out") == metrics(tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # And only once.
    assert [type(event) for event in run(tmp_path / "out", resume=True)] == [Notice, Finished]


def test_every_checkpoint_is_an_adapter(prepared: Prepare, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(prepared(steps=2, save_every=1).start(out))
    first, last = checkpoints(out)
    for name in ("adapter_config.json", "adapter_model.safetensors", "trained.safetensors"):
        assert (last / name).read_bytes() == (out / name).read_bytes()
    drawn = [
        MobileO.load(tiny_model, adapter=path).generate("a cat", seed=1, steps=1).latents for path in (first, last)
    ]
    assert not np.array_equal(*drawn)


def test_a_checkpoint_holds_all_that_training_changes(prepared: Prepare, tmp_path: Path) -> None:
    for stage in ("lora", "paper", "align"):
        run = prepared(stage, steps=2)
        before = dict(tree_flatten(run.network.parameters()))
        list(run.start(tmp_path / stage))
        again = prepared(stage, steps=2)
        list(again.start(tmp_path / stage, resume=True))
        trained, resumed = (dict(tree_flatten(r.network.parameters())) for r in (run, again))
        changed = [name for name in trained if not mx.array_equal(before[name], trained[name])]
        assert len(changed) > 10
        assert all(mx.array_equal(trained[name], resumed[name]) for name in trained)


# Not on something else


def spoilt(folder: Path, change: Callable[[dict[str, mx.array]], object], name: str = "trained") -> None:
    """Changes the arrays of the last checkpoint."""
    path = checkpoints(folder)[-1] / f"{name}.safetensors"
    arrays: dict[str, mx.array] = dict(mx.load(str(path)))  # type: ignore[arg-type]
    mx.eval(arrays)
    change(arrays)
    mx.save_safetensors(str(path), arrays)


def test_a_checkpoint_that_lacks_something_is_refused(prepared: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(prepared(steps=2).start(out))
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)

    def lose(letter: str) -> Callable[[dict[str, mx.array]], None]:
        return lambda arrays: [arrays.pop(name) for name in list(arrays) if letter in name] and None

    for name, change, words in (
        ("adapter_model", lose("lora_A"), r"missing are base_model\.model.*lora_A\.weight.* and \d+ more"),
        ("optimizer", lose(".m"), "missing are states"),
        ("trained", lambda arrays: arrays.update(other=mx.zeros(1)), "unexpected are other"),
    ):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        spoilt(out, change, name)
        with pytest.raises(CheckpointError, match=words):
            list(prepared(steps=2).start(out, resume=True))
    for name in ("adapter_model", "optimizer", "trained"):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        (checkpoints(out)[-1] / f"{name}.safetensors").unlink()
        with pytest.raises(CheckpointError, match=rf"is damaged \('.*{name}\.safetensors' can't be read"):
            list(prepared(steps=2).start(out, resume=True))


@pytest.mark.parametrize("component", ["dit", "vae_encoder", "llm"])
def test_other_weights_of_the_same_shapes_are_noticed(
    quadruplets: Callable[..., Path], prepared: Prepare, tiny_model: Path, tmp_path: Path, component: str
) -> None:
    run = prepared("align", steps=1)
    list(run.start(tmp_path / "out"))
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    path = other / f"{component}.safetensors"
    weights: dict[str, mx.array] = dict(mx.load(str(path)))  # type: ignore[arg-type]
    mx.eval(weights)
    name = max(weights, key=lambda name: weights[name].size)
    weights[name] = weights[name] * 1.5
    mx.save_safetensors(str(path), weights, {"format": "mlx"})
    again = FinetuneRun.prepare(quadruplets(8), other, run.options)
    with pytest.raises(CheckpointError, match=r"\(other weights\)"):
        list(again.start(tmp_path / "out", resume=True))


def test_a_digest_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    mx.save_safetensors(str(path), {"big": mx.arange(200_000), "small": mx.arange(10)})
    found = digests.weights_digest([path])
    assert found == digests.weights_digest([path])
    read: list[int] = []
    pread = digests.os.pread
    monkeypatch.setattr(digests.os, "pread", lambda *arguments: read.append(arguments[1]) or pread(*arguments))
    for change in ({"big": mx.arange(1, 200_001)}, {"small": mx.arange(9, -1, -1)}):
        mx.save_safetensors(str(path), {"big": mx.arange(200_000), "small": mx.arange(10), **change})
        assert digests.weights_digest([path]) != found
    assert sum(read) < 20_000


# More steps


def test_a_finished_run_goes_on_with_more_steps(prepared: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = list(prepared(steps=4).start(out))
    # Killed after a checkpoint of the new steps, and before the first of them.
    for killed_after in (5, 6):
        folder = tmp_path / f"killed-{killed_after}"
        shutil.copytree(out, folder)
        until(prepared(steps=8).start(folder, resume=True), at_step(killed_after))
    rest = list(prepared(steps=8).start(out, resume=True))
    assert rest[0] == Notice("going on after step 4 of 8; from step 4 on the learning rate rises and falls once more")
    reports = [event for event in first + rest if isinstance(event, StepReport)]
    assert [report.step for report in reports] == list(range(1, 9))
    stage = prepared().options.stage
    one = warmup_cosine(4, stage.warmup, stage.minimum / stage.learning_rate)
    rates = [stage.learning_rate * float(one(mx.array(step))) for step in range(4)]
    assert np.allclose([report.learning_rate for report in reports], rates * 2, rtol=1e-6)
    for folder in (tmp_path / "killed-5", tmp_path / "killed-6"):
        list(prepared(steps=8).start(folder, resume=True))
        assert metrics(folder) == metrics(out)
        assert contents(folder) == contents(out)
    with pytest.raises(OptionError, match="--steps 4 is less than the 8 steps of this run"):
        list(prepared(steps=4).start(out, resume=True))


def test_the_steps_of_a_run_can_be_left_out(prepared: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(prepared("align", steps=1).start(out))
    (*_, last) = prepared("align", steps=None).start(out, resume=True)
    assert last == Finished(out, 1, 1, None)


def test_schedules() -> None:
    first = Schedule(100)
    assert (first.start, first.first) == (0, 100)
    assert first.extended(100, 40) is first
    second = first.extended(150, 100)
    assert second == Schedule(150, 100, 100)
    assert second.extended(200, 120) == Schedule(200, 120, 100)
    factor, whole = second.factor(0.1, 0.01), warmup_cosine(50, 0.1, 0.01)
    for dtype in (mx.uint64, mx.int32):
        assert all(float(factor(mx.array(100 + i, dtype))) == float(whole(mx.array(i, dtype))) for i in range(50))
    assert float(factor(mx.array(0, mx.uint64))) == float(whole(mx.array(0)))
    state = {"steps": 150, "start": 100, "first": 100}
    assert Schedule.from_state(state, Path("x")) == second
    wrong = ({"steps": "150"}, {"start": 150}, {"first": True}, {"steps": 10**300}, {"other": 1})
    for odd in (None, [], {}, *({**state, **change} for change in wrong)):
        with pytest.raises(CheckpointError, match="'x' is damaged"):
            Schedule.from_state(odd, Path("x"))


# From an adapter


def test_a_run_starts_from_an_adapter(prepared: Prepare, tiny_model: Path, tmp_path: Path) -> None:
    list(prepared("paper", steps=2, dropout=0.0).start(tmp_path / "first"))
    step = checkpoints(tmp_path / "first")[-1]
    for adapter in (step, tmp_path / "first"):
        run = prepared("paper", steps=2, dropout=0.0, adapter=adapter, seed=3, count=6)
        trained = Adapter.open(adapter)
        for component, updates in trained.low_rank.items():
            layers = dict(run.network.children()[component].named_modules())
            for path, update in updates.items():
                a, b = update.factors()
                assert np.array_equal(layers[path].lora_a.T, a)
                assert np.array_equal(layers[path].lora_b.T, b)
        values = dict(tree_flatten(run.network.parameters()))
        full: dict[str, mx.array] = mx.load(str(adapter / "trained.safetensors"))  # type: ignore[assignment]
        assert all(np.array_equal(values[name], value) for name, value in full.items())
    # It can be resumed, with the same adapter alone.
    events = list(run.start(tmp_path / "second"))
    assert isinstance(events[-1], Finished)
    again = {"steps": 2, "dropout": 0.0, "seed": 3, "count": 6}
    list(prepared("paper", **again, adapter=adapter).start(tmp_path / "second", resume=True))
    with pytest.raises(CheckpointError, match=r"adapter .* there, none here"):
        list(prepared("paper", **again).start(tmp_path / "second", resume=True))


def test_an_adapter_for_something_else_is_refused(prepared: Prepare, tmp_path: Path) -> None:
    list(prepared("paper", steps=1).start(tmp_path / "paper"))
    for stage, changes, words in (
        ("lora", {}, r"changes what this run does not train \(dit\..*; choose --train, --dit and --vision"),
        ("align", {}, r"has low-rank updates where this run has none \(llm\."),
        ("paper", {"rank": 8}, "has rank 16 and alpha 32, and this run rank 8 and alpha 32; choose --rank and --alpha"),
        ("paper", {"alpha": 16.0}, "has rank 16 and alpha 32, and this run rank 16 and alpha 16"),
    ):
        with pytest.raises(OptionError, match=words):
            list(prepared(stage, adapter=tmp_path / "paper", **changes).start(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="holds no adapter"):
        prepared(adapter=tmp_path)


# On the way out


def test_a_failing_run_leaves_the_model_and_the_adapter_of_its_last_step(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its BatchNorms too, which have seen the batch that failed."""
    list(prepared("paper", layout="upstream", steps=2).start(tmp_path / "whole"))
    for failure in (float("nan"), KeyboardInterrupt):
        run = prepared("paper", layout="upstream", steps=4, save_every=4)
        # The schedule is that of a run of two steps.
        monkeypatch.setattr(run, "_schedule", lambda *_: (Schedule(4), 0))
        monkeypatch.setattr(Schedule, "factor", lambda self, *shares: warmup_cosine(2, *shares))
        batches = run.batches.__class__.__call__

        def broken(self: Any, step: int, index: int, failure: Any = failure, batches: Callable = batches) -> Any:
            batch = batches(self, step, index)
            if step < 2:
                return batch
            if failure is KeyboardInterrupt:
                raise KeyboardInterrupt
            return replace(batch, latents=batch.latents * failure)

        monkeypatch.setattr(run.batches.__class__, "__call__", broken)
        monkeypatch.setattr(run.batches, "one_by_one", lambda step: iter(()))
        out = tmp_path / str(failure)
        with pytest.raises(TrainingError if failure is not KeyboardInterrupt else KeyboardInterrupt) as caught:
            list(run.start(out))
        if failure is not KeyboardInterrupt:
            # There is no checkpoint yet.
            assert str(caught.value).endswith(
                f"look at line 7, line 4, line 3, line 1; '{out}' holds the adapter of step 2."
            )
        for name in ("adapter_model.safetensors", "trained.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        monkeypatch.undo()


def test_a_full_disk_still_has_place_for_the_adapter(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **how: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state, "write_tensors", full)
    with pytest.raises(
        OutputError, match=r"step-0000002' can't be written: the disk is full.* the adapter of step 2\.$"
    ):
        list(prepared("align").start(tmp_path / "out"))
    assert (tmp_path / "out" / "trained.safetensors").is_file()
    assert not list(tmp_path.rglob(".mobileo-unfinished*"))


def test_the_guard_of_a_resumed_run_knows_the_losses_before(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    class Spy(DivergenceGuard):
        def __post_init__(self) -> None:
            super().__post_init__()
            seen.append([])

        def diverged(self, loss: float) -> bool:
            seen[-1].append(loss)
            return super().diverged(loss)

    monkeypatch.setattr(trainer, "DivergenceGuard", Spy)
    whole = losses(list(prepared("align").start(tmp_path / "whole")))
    until(prepared("align").start(tmp_path / "out"), at_step(3))
    list(prepared("align").start(tmp_path / "out", resume=True))
    assert seen[0] == seen[2] == whole


def test_a_folder_without_locks_is_named(prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "lock", lambda descriptor: None)
    events = list(prepared("align", steps=1).start(tmp_path / "out"))
    assert isinstance(events[0], Notice)
    assert "file system without locks" in events[0].text
    assert json.loads((checkpoints(tmp_path / "out")[0] / "state.json").read_text())["step"] == 1


def test_a_folder_without_a_checkpoint_is_named(prepared: Prepare, tmp_path: Path) -> None:
    first = next(prepared(steps=1).start(tmp_path / "mistyped", resume=True))
    assert isinstance(first, Notice)
    assert "mistyped' holds no checkpoint: the run starts at its first step" in first.text
