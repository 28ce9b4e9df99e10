"""What `benchmarks.scale` makes of its measurements."""

from __future__ import annotations

import pytest

from benchmarks.scale import _rate, report


def test_the_first_tenth_does_not_count() -> None:
    times = [100.0 + 0.5 * index for index in range(20)]  # of two workers that take 0.8 s for each
    times[0] = 1.0
    found = _rate(times, [0.8] * 20, [10.0, 28.0], 2)
    assert found["per_second"] == pytest.approx(2)
    assert found["seconds"] == pytest.approx(0.8)
    assert found["overhead"] == pytest.approx(0.2)
    assert found["processor"] == pytest.approx(1)


def test_tasks_that_were_reported_with_the_first_tenth_do_not_count() -> None:
    times = [float(index // 5) for index in range(20)]  # five a second, all of them reported at its end
    assert _rate(times, [0.2] * 20, [0.0, 1.0], 1)["per_second"] == pytest.approx(5)


def test_the_report_names_the_load() -> None:
    way = {"per_second": 2.0, "seconds": 0.4, "overhead": 0.1, "processor": 0.5}
    machine = {"chip": "A chip", "os": "Linux 6", "mlx": "0.32", "device": "cpu", "blas": "OpenBLAS", "date": "2026"}
    value = {
        "machine": machine,
        "cores": 2,
        "tasks": 20,
        "steps": 4,
        "load": [1.0, 5.5],
        "ways": {"a plain loop": way, "--workers 2": {**way, "per_second": 3.0}, "--servers, one": way},
        "rounds": {"a plain loop": [way]},
        "piece_seconds": 0.006,
        "scheduler_per_second": 900.0,
        "checked_lines_per_second": 8000.0,
    }
    lines = list(report(value))
    assert "a load of 1.0 to 5.5 meanwhile" in lines[-1]
    (two,) = (line for line in lines if line.startswith("| --workers 2"))
    assert [cell.strip() for cell in two.split("|")[2:-1]] == ["3.00", "1.50", "400.0", "100.0", "500.0"]
    (servers,) = (line for line in lines if line.startswith("| --servers"))
    assert servers.split("|")[5].strip() == ""
