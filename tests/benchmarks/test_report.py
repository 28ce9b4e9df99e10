"""The report says met, missed or not measured, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth, report, vs_torch


def write(folder: Path, name: str, **value: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value))


def by_name(folder: Path) -> dict[str, report.Target]:
    return {line.name: line for line in report.lines(folder)}


def test_nothing_measured_is_nothing_met(tmp_path: Path) -> None:
    found = report.lines(tmp_path)
    # Every benchmark has its lines, and all targets that are known without a file are there.
    commands = {line.command.removeprefix("python -m benchmarks.").split()[0] for line in found}
    assert commands == set(report.SOURCES)
    assert len(found) == 1 + 1 + len(vs_torch.TARGETS) + 1 + (2 * len(growth.SERIES) + 1) + 3 + 1
    assert len({line.name for line in found}) == len(found)
    assert {line.met for line in found} == {None}
    assert all(line.measured.startswith("not measured: ") for line in found)
    assert all(line.command.startswith("python -m benchmarks.") for line in found)


def test_memory_by_its_schema(tmp_path: Path) -> None:
    rows = [
        {"name": "decode", "target_gb": 1.5, "measured_gb": 1.2, "accounted_gb": 1.1},
        {"name": "step", "target_gb": 0.08, "measured_gb": 0.05, "accounted_gb": 0.09},
        {"name": "edit", "target_gb": 0.95, "measured_gb": None, "accounted_gb": 0.9},
        {"name": "ask", "target_gb": 0.85, "measured_gb": None, "accounted_gb": None},
        {"name": "other", "target_gb": None, "measured_gb": 3.0, "accounted_gb": None},
    ]
    write(tmp_path, "memory", rows=rows)
    lines = by_name(tmp_path)
    assert {name: lines[name].met for name in ("decode", "step", "edit", "ask", "other")} == {
        "decode": True,
        "step": False,
        "edit": True,
        "ask": None,
        "other": None,
    }
    assert lines["decode"].measured == "1.20 GB measured, 1.10 GB accounted"


@pytest.mark.parametrize(("ratio", "met"), [(1.0, True), (0.99, False)])
def test_speed_against_torch(ratio: float, met: bool, tmp_path: Path) -> None:
    write(tmp_path, "vs_torch", full_size=True, rows=[{"name": "dit", "ratio": ratio}])
    line = next(line for line in report.lines(tmp_path) if line.name.startswith("DiT step with guidance, speed"))
    assert line.met is met


def test_a_smaller_model_measures_nothing(tmp_path: Path) -> None:
    write(tmp_path, "vs_torch", full_size=False, rows=[{"name": "dit", "ratio": 5.0}])
    write(tmp_path, "growth", size=None, series=[{"name": "step", "time_exponent": 0.5, "points": []}])
    assert {line.met for line in report.lines(tmp_path)} == {None}


@pytest.mark.parametrize(("exponent", "met"), [(1.1, True), (1.2, False)])
def test_growth_of_time_and_of_memory(exponent: float, met: bool, tmp_path: Path) -> None:
    points = [{"label": "512 px"}, {"label": "2048 px"}]
    entry = {"name": "decoder", "time_exponent": 0.9, "memory_exponent": exponent, "points": points}
    write(tmp_path, "growth", size="0.5b", series=[entry])
    lines = by_name(tmp_path)
    time, memory = (lines[f"growth of the decoder by image size: exponent of {what}"] for what in ("time", "memory"))
    assert (time.met, memory.met) == (True, met)
    assert memory.measured == f"{exponent:.2f} (512 px to 2048 px)"


def test_another_machine_measures_nothing_of_the_papers(tmp_path: Path) -> None:
    rows = [{"name": "first_token", "seconds": {"mean": 0.15}}, {"name": "image", "seconds": {"mean": 5.0}}]
    latency: dict[str, Any] = {"model": "0.5B", "size": "0.5b", "pixels": 512, "rows": rows}
    write(tmp_path, "latency-amd-epyc", records=[{"machine": {"chip": "AMD EPYC", "date": "2026-02-02"}, **latency}])
    assert by_name(tmp_path)["first token, MacBook M2 Pro"].met is None
    mac = {"chip": "Apple M2 Pro", "gpu": "Apple M2 Pro", "date": "2026-01-01"}
    write(tmp_path, "latency-apple-m2-pro", records=[{"machine": mac, **latency}])
    assert by_name(tmp_path)["first token, MacBook M2 Pro"].met is True
    assert by_name(tmp_path)["an image, MacBook M2 Pro"].met is False


def test_a_missed_target_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "decoder", "value": 1.0, "unit": "GFLOP", "target": 2.0, "met": True}]
    write(tmp_path, "flops", rows=rows)
    assert report.main(["--no-run", str(tmp_path)]) == 0
    write(tmp_path, "flops", rows=[rows[0] | {"value": 3.0, "met": False}])
    assert report.main(["--no-run", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert "MISSED" in (tmp_path / "report.md").read_text()


def test_a_damaged_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "growth.json").write_text("{")
    assert report.main(["--no-run", str(tmp_path)]) == 2
    assert "growth.json" in capsys.readouterr().err
