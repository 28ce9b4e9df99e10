"""Both sides compute the same from the same weights; how fast they are is for the machine to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import vs_torch
from benchmarks.common import Timing

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def test_all_stages_agree(tmp_path: Path) -> None:
    assert vs_torch.main(["--quick", "--runs", "1", "--out", str(tmp_path)]) == 0
    value = json.loads((tmp_path / "vs_torch.json").read_text())
    assert [row["name"] for row in value["rows"]] == list(vs_torch.TARGETS)
    assert {row["name"]: row["error"] for row in value["rows"] if not 0 < row["error"] < 1e-5} == {}
    assert all(row["ratio"] > 0 and row["target"] is None for row in value["rows"])
    assert not value["full_size"]


def test_twice_as_fast_is_a_ratio_of_two() -> None:
    assert vs_torch.Comparison("dit", Timing((1.0, 1.0, 9.0)), Timing((2.0, 0.1, 2.0)), 0.0).ratio == 2


def test_other_weights_would_show() -> None:
    torch = pytest.importorskip("torch")
    import mlx.core as mx

    assert vs_torch.difference(mx.array([1.0, 2.0]), torch.tensor([1.0, 2.5])) == pytest.approx(0.2)


def test_bad_input_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vs_torch.main(["--layers", "0", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("vs_torch: error: ")
