"""A student in few steps beside the default: a short run on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from random_adapter import write_random_adapter

from benchmarks import few_steps, presets
from benchmarks.paired_stats import Variant
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.training.lora import LoRAConfig

TINY = Checkpoint.open("tiny").path


def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, out = tmp_path / "student", tmp_path / "out"
    write_random_adapter(adapter, TINY, LoRAConfig(rank=8, alpha=64.0, components=("dit",)))
    monkeypatch.setattr(few_steps, "SHOWN", {"draw": 1, "edit": 1})
    arguments = ["--adapter", str(adapter), "--n", "1", "--edits", "1", "--student-only", "--out", str(out)]
    assert few_steps.main(arguments) == 0
    rows = {(row["task"], row["preset"]): row for row in json.loads((out / "few_steps.json").read_text())["rows"]}
    assert [row["passes"] for row in rows.values()] == [4, 2, 1, 4, 2, 1]
    student = rows["draw", "student, 2 steps"]
    assert student["default_right"] == 1  # the model is a trained one
    assert student["right"] == 0  # and the adapter is not
    assert "drawings, student, 4 steps" in (out / "few_steps.md").read_text()
    with Image.open(out / "few_steps.webp") as sheet:
        assert sheet.height > sheet.width


def test_samples_of_another_adapter_are_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for components in (("dit",), ("llm",)):
        adapter = tmp_path / components[0] / "student"
        adapter.parent.mkdir()
        write_random_adapter(adapter, TINY, LoRAConfig(rank=2, alpha=1e-3, components=components))
        monkeypatch.chdir(adapter.parent)
        chosen = [Variant("default", drawing={"steps": 1}, adapter="student")]
        presets.measured("tiny", chosen, {"draw": 1}, 0, tmp_path)
        found.append((tmp_path / "presets-samples-0-of-1.jsonl").read_text().count("\n"))
    assert found == [1, 2]
