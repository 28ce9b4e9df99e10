"""Floors of the published model, against figures that were computed apart from this code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import roofline
from benchmarks.synthetic import official_config


@pytest.fixture(scope="module")
def stages() -> dict[str, roofline.Work]:
    return {stage.name: stage for stage in roofline.stages(official_config("0.5b"))}


@pytest.mark.parametrize(("name", "gflop"), [("vision", 488.5), ("prefill", 213.1), ("decode", 1.0), ("decoder", 1845)])
def test_operations(stages: dict[str, roofline.Work], name: str, gflop: float) -> None:
    assert stages[name].flops / 1e9 == pytest.approx(gflop, rel=0.03)


def test_weights_of_a_token_are_those_of_the_language_model(stages: dict[str, roofline.Work]) -> None:
    assert stages["decode"].weights == pytest.approx(988e6, rel=0.01)
    m2 = next(chip for chip in roofline.CHIPS if chip.name == "M2 Pro 19c")
    seconds, bound = stages["decode"].floor(m2)
    assert bound == "memory"
    assert seconds == pytest.approx(5.1e-3, rel=0.03)


def test_bits_shrink_what_is_read() -> None:
    stage = next(s for s in roofline.stages(official_config("0.5b"), bits={"llm": 4}) if s.name == "decode")
    half, whole = 2 * 136.1e6, 357.8e6 * (4 / 8 + 4 / 64)
    assert stage.weights == pytest.approx(half + whole, rel=0.01)


def test_a_larger_image_takes_more(stages: dict[str, roofline.Work]) -> None:
    larger = {stage.name: stage for stage in roofline.stages(official_config("0.5b"), pixels=1024)}
    assert larger["decoder"].flops == pytest.approx(4 * stages["decoder"].flops, rel=0.01)
    assert larger["prefill"] == stages["prefill"]


def test_the_share_that_was_reached(tmp_path: Path) -> None:
    latency = {
        "machine": {"chip": "Apple M3 Max"},
        "size": "0.5b",
        "pixels": 512,
        "steps": 20,
        "rows": [{"name": "vision", "seconds": {"mean": 0.0688}}, {"name": "edit", "seconds": {"mean": 1.0}}],
    }
    (tmp_path / "latency-chip.json").write_text(json.dumps({"records": [latency]}))
    assert roofline.main(["--latency", str(tmp_path / "latency-chip.json"), "--out", str(tmp_path)]) == 0
    value = json.loads((tmp_path / "roofline.json").read_text())
    assert value["chip"] == "M3 Max 40c"
    assert [row["name"] for row in value["reached"]] == ["vision"]
    assert value["reached"][0]["share"] == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("chip", ["Apple M2 Pro", "AMD EPYC"])
def test_a_chip_that_is_not_clear_has_to_be_named(
    chip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = {"machine": {"chip": chip}, "size": "0.5b", "pixels": 512, "steps": 20, "rows": []}
    (tmp_path / "latency-chip.json").write_text(json.dumps({"records": [latency]}))
    assert roofline.main(["--latency", str(tmp_path / "latency-chip.json"), "--out", str(tmp_path)]) == 2
    assert "--chip" in capsys.readouterr().err
