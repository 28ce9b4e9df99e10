"""What is found in a run's folder, whatever it is: compared, left out, or refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mobileo_mlx import locks
from mobileo_mlx.atomic import TEMPORARY_PREFIX
from mobileo_mlx.errors import CheckpointError, MobileOError, OutputError
from mobileo_mlx.training.run_state import (
    append_metrics,
    check_new,
    checkpoints,
    clean,
    holds_run,
    locked,
    read_checkpoint,
    read_metrics,
    write_checkpoint,
)

SETTINGS = {"seed": 0, "settings": {"rate": 1.0}}


def arrays() -> dict[str, dict[str, mx.array]]:
    return {"model": {"a": mx.ones((2, 3)), "b": mx.zeros(4)}, "optimizer": {"step": mx.array(3, mx.uint64)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, 3, arrays(), SETTINGS, {"note.txt": "é"})
    return tmp_path / "step-0000003"


def test_what_was_written_is_read(checkpoint: Path) -> None:
    step, found = read_checkpoint(checkpoint, SETTINGS, arrays())
    assert step == 3
    assert (found["model"]["a"] == arrays()["model"]["a"]).all()
    assert (checkpoint / "note.txt").read_text("utf-8") == "é"
    assert checkpoints(checkpoint.parent) == [checkpoint]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda wanted: wanted["model"].update(c=mx.zeros(1)), "missing are c"),
        (lambda wanted: wanted["model"].pop("b"), "unexpected are b"),
        (lambda wanted: wanted["model"].update(a=mx.ones((3, 2))), r"a \(2, 3\) float32 instead of \(3, 2\) float32"),
        (lambda wanted: wanted["model"].update(a=mx.ones((2, 3), mx.float16)), r"float32 instead of \(2, 3\) float16"),
        (lambda wanted: wanted["optimizer"].update(m=mx.zeros(1)), "missing are m"),
        (lambda wanted: wanted.update(ema={"a": mx.ones((2, 3))}), r"damaged \('.*ema.safetensors' can't be read"),
    ],
)
def test_arrays_are_compared(checkpoint: Path, change: Callable, words: str) -> None:
    wanted = arrays()
    change(wanted)
    with pytest.raises(CheckpointError, match=rf"{words}.*; remove it, and the one before it is used\.$"):
        read_checkpoint(checkpoint, SETTINGS, wanted)


def test_all_that_does_not_fit_is_listed(checkpoint: Path) -> None:
    wanted = {"model": {"c": mx.ones((2, 3)), "b": mx.zeros(5)}, "optimizer": arrays()["optimizer"]}
    with pytest.raises(
        CheckpointError, match=r"missing are c; unexpected are a; of another shape or type are b \(4,\)"
    ):
        read_checkpoint(checkpoint, SETTINGS, wanted)


def test_values_are_looked_at(tmp_path: Path) -> None:
    broken = arrays()
    broken["model"]["b"] = mx.array([0.0, float("nan"), 0.0, 0.0])
    write_checkpoint(tmp_path, 3, broken, SETTINGS)
    with pytest.raises(CheckpointError, match="NaN or infinite are b"):
        read_checkpoint(tmp_path / "step-0000003", SETTINGS, arrays())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"version https://git-lfs", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_damaged_files(checkpoint: Path, name: str, content: bytes | None) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"remove .*, and the one before it is used\.$"):
        read_checkpoint(checkpoint, SETTINGS, arrays())


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"format": 2, "seed": 0, "settings": {"rate": 1.0}}',
        *(
            f'{{"format": 2, "step": {step}, "seed": 0, "settings": {{"rate": 1.0}}}}'
            for step in ('"3"', "true", "-1", "4", "3.0", "1" * 5000, "1e999", "NaN", "[3]", "null")
        ),
        '{"format": "2", "step": 3, "seed": 0, "settings": {"rate": 1.0}}',
        '{"format": 2, "step": 3, "seed": [], "settings": {"rate": {"rate": 1.0}}}',
        '{"format": 2, "step": 3, "seed": 0, "settings": []}',
        '{"format": 2, "step": 3, "seed": 0, "settings": {"rate": "' + "x" * 10_000 + '"}}',
        json.dumps({"format": 2, "step": 3, "seed": 0, "settings": {"y" * 1000 + str(i): i for i in range(1000)}}),
    ],
)
def test_odd_states(checkpoint: Path, text: str) -> None:
    (checkpoint / "state.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(checkpoint, SETTINGS, arrays())
    assert len(str(caught.value)) < 1000 + len(str(checkpoint))


def test_only_folders_of_a_step_are_checkpoints(checkpoint: Path) -> None:
    folder = checkpoint.parent
    for name in ("step-", "step-x", "step-3", "step-0000004.tmp"):
        (folder / name).mkdir()
    (folder / "step-0000005").write_text("a file")
    checkpoint.rename(folder / "step-10000000")
    (folder / "step-9999999").mkdir()
    assert [path.name for path in checkpoints(folder)] == ["step-9999999", "step-10000000"]


def test_odd_lines_of_the_metrics_are_left_out(tmp_path: Path) -> None:
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 1, "held_out": {"loss": null}}', b'{"step": 2, "loss": 0.25}']
    odd = [
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"step": "1", "loss": 0.5}',
        b'{"step": true, "loss": 0.5}',
        b'{"step": 1, "loss": "low"}',
        b'{"step": 1, "held_out": [1]}',
        b'{"step": 1, "held_out": {}}',
        b'{"step": 1, "loss": NaN}',
        b'{"step": 1e999, "loss": 1}',
        b'{"step": 1, "loss": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b"\0" * 100,
        b'{"step": 3, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*odd[:7], *good, *odd[7:]]))
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 1, 2]
    clean(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(line + b"\n" for line in good[:2])


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1, "held_out": {"loss": float("nan"), "other": [1.0]}})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "held_out": {"loss": None, "other": [1.0]},
    }


@pytest.mark.parametrize("what", ["folder", "pipe", "loop"])
def test_metrics_that_are_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "metrics.jsonl"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[what]()
    with pytest.raises(MobileOError, match=r"metrics\.jsonl' "):
        read_metrics(tmp_path)


def test_unfinished_samples_are_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "samples"):
        folder.mkdir(exist_ok=True)
        (folder / f"{TEMPORARY_PREFIX}1.png").write_bytes(b"half")
        (folder / "0000001.png").write_bytes(b"whole")
    clean(tmp_path, 1)
    assert {path.name for path in tmp_path.rglob("*.png")} == {"0000001.png"}


def test_a_run_that_failed_before_its_first_step_leaves_a_folder_to_start_in(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    (tmp_path / f"{TEMPORARY_PREFIX}step-0000001").mkdir()
    assert not holds_run(tmp_path)
    check_new(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(OutputError, match="not empty"):
        check_new(tmp_path)


def test_a_folder_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path) as held:
        assert held
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with locked(tmp_path) as held:
        assert not held


def test_a_lock_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match=r"'.*\.lock' can't be written \(Is a directory\)"), locked(tmp_path):
        pass
    with pytest.raises(OutputError, match="can't be written"), locked(tmp_path / "missing"):
        pass
