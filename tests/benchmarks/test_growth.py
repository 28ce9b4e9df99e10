"""How cost grows, on a tiny model; and the arithmetic of exponents."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.common import fitted_exponent
from benchmarks.synthetic import synthetic_model, tiny_config


def test_all_series_on_a_tiny_model(tmp_path: Path) -> None:
    assert growth.main(["--tiny", "--sizes", "64,128", "--runs", "1", "--out", str(tmp_path)]) == 0
    value = json.loads((tmp_path / "growth.json").read_text())
    series = {entry["name"]: entry for entry in value["series"]}
    assert list(series) == list(growth.SERIES)
    assert [point["n"] for point in series["step"]["points"]] == [4, 16]
    assert all(point["seconds"] > 0 for entry in value["series"] for point in entry["points"])
    assert series["decoder"]["points"][1]["memory"] > series["decoder"]["points"][0]["memory"]
    assert series["batch"]["difference"] < 1e-5
    assert (tmp_path / "growth.png").exists() == (find_spec("matplotlib") is not None)
    assert "Exponents: time" in (tmp_path / "growth.md").read_text()


def test_the_exponent_of_a_power() -> None:
    assert fitted_exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_a_square_is_told_from_a_line() -> None:
    def found(c: float, a: float, b: float) -> list[float]:
        return growth.polynomial([growth.Point(str(n), n, c + a * n + b * n**2, 0) for n in (64, 128, 512, 4096)])

    assert found(0.1, 2e-3, 3e-7) == pytest.approx([0.1, 2e-3, 3e-7])
    assert found(0, 2e-3, 0) == pytest.approx([0, 2e-3, 0], abs=1e-9)
    assert min(found(0.1, 2e-3, -1e-7)) == 0  # no share is negative


def test_memory_of_images_counts_no_weights() -> None:
    """What the first job needs is loaded before it."""
    model = synthetic_model(tiny_config())
    ((_, _, prepare),) = growth.token_by_images(model, [1])
    job = prepare()
    loaded = model.parts.loaded
    job()
    assert model.parts.loaded == loaded


def test_what_would_take_too_long_is_left_out_with_a_reason() -> None:
    def work(seconds: float):
        def run() -> None:
            begin = time.process_time()
            while time.process_time() - begin < seconds:
                pass

        return lambda: run

    points = [("small", 1, work(0.02)), ("large", 100, work(0)), ("next", 2, work(0.02))]
    found = list(growth.measured(points, runs=1, limit=1.0))
    assert isinstance(found[0], growth.Point)
    assert isinstance(found[1], str)
    assert found[1].startswith("large left out")
    assert isinstance(found[2], growth.Point)


@pytest.mark.parametrize("sizes", ["500", "0", "512,x", ""])
def test_bad_sizes_are_told_in_a_sentence(sizes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--sizes", sizes, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "multiples of 32" in told[0]
