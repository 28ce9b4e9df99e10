from __future__ import annotations

import io
import sys

import pytest
from mobileo_cli import printing


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.4239, "0.42 s"), (9.87, "9.87 s"), (12.34, "12.3 s"), (125.2, "2 min 05 s"), (3599.9, "60 min 00 s")],
)
def test_seconds(value: float, expected: str) -> None:
    assert printing.seconds(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (4_120_000, "4.12 MB"), (3.33e9, "3.33 GB")],
)
def test_size(count: int, expected: str) -> None:
    assert printing.size(count) == expected


def test_table() -> None:
    rows = [("name", "size"), ("dit", "12 kB"), ("mm_projector", "1 B")]
    assert printing.table(rows, right=(False, True)).splitlines() == [
        "name           size",
        "------------  -----",
        "dit           12 kB",
        "mm_projector    1 B",
    ]


def test_notes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    printing.note("'a\nb.png' is damaged.")
    assert capsys.readouterr().err == "'a b.png' is damaged.\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(printing.time, "monotonic", lambda: next(times))
    with printing.Progress("seed 7") as progress:
        for step in (1, 2, 3):
            progress.update(step, 3)
    start, first, second, last, end = terminal.getvalue().split("\r\x1b[K")[1:]
    assert start == "seed 7"
    assert first == "seed 7 [########................] 1/3"  # the first step also loads the model
    assert second == "seed 7 [################........] 2/3, 3.00 s left"
    assert last == "seed 7 [########################] 3/3"
    assert end == ""


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with printing.Progress("seed 7") as progress:
        progress.update(1, 2)
    assert capsys.readouterr() == ("", "")


def test_memory_is_the_peak_and_what_the_cache_holds(capsys: pytest.CaptureFixture[str]) -> None:
    printing.details({"decode": 2.0}, 3_000_000_000, 0)
    printing.details({"decode": 2.0}, 3_000_000_000, 250_000_000)
    plain, cached = capsys.readouterr().err.splitlines()
    assert plain.endswith("peak memory 3 GB")
    assert cached.endswith("peak memory 3 GB and 250 MB in MLX's cache")
