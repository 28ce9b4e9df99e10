"""The arithmetic of `benchmarks.best_of`, on made-up verdicts; and one run."""

import json

import pytest

from benchmarks.best_of.__main__ import main
from benchmarks.best_of.judging import Judged, kept_judgements
from benchmarks.best_of.report import compared, measured
from benchmarks.best_of.samples import DRAWINGS, ROWS, samples


def made(right: str, passes: str, scores: list[float], row: str = "counting") -> Judged:
    """Verdicts as a line of + and -."""
    return Judged(row, 0, [c == "+" for c in right], [c == "+" for c in passes], scores, 8.0, 0.8)


SECOND = made("-+++----", "-+------", [0.9, 0.5, 0.2, 0.1, 0, 0, 0, 0])  # only the second passes, with a lower score
FOOLED = made("+-------", "--+-----", [0.5, 0.4, 0.9, 0, 0, 0, 0, 0])  # the model lets a wrong one pass
NONE = made("--------", "--------", [0.1, 0.1, 0.3, 0.2, 0, 0, 0, 0])


TWO = made("++------", "-++-----", [0.5, 0.4, 0.9, 0, 0, 0, 0, 0])  # of two that pass, the later has more


def test_what_is_kept_is_the_first_that_passes_or_has_the_best_score():
    assert [SECOND.kept(n) for n in (1, 2, 8)] == [0, 1, 1]
    assert [FOOLED.kept(n) for n in (1, 2, 4)] == [0, 0, 2]
    assert [TWO.kept(n) for n in (1, 2, 4)] == [0, 1, 1]
    assert [NONE.kept(n) for n in (1, 2, 4)] == [0, 0, 2]  # the earliest of equal ones


def test_drawing_stops_at_the_first_that_passes():
    assert [one.drawn(8) for one in (SECOND, FOOLED, NONE)] == [2, 3, 8]
    assert [one.drawn(2) for one in (SECOND, FOOLED, NONE)] == [2, 2, 2]


def test_another_choice_is_the_highest_score():
    assert [TWO.outcome(way, 4) for way in ("kept", "score", "oracle")] == [True, False, True]


def test_the_oracle_finds_whatever_is_right():
    assert [one.outcome("oracle", 8) for one in (SECOND, FOOLED, NONE)] == [True, True, False]
    assert [one.outcome("oracle", 1) for one in (SECOND, FOOLED, NONE)] == [False, True, False]


def test_pairs_are_counted():
    some = [SECOND, SECOND, FOOLED, NONE]
    four = compared(some, "kept", 4)
    assert (four["won"], four["lost"], four["right"]) == (2, 1, 0.5)
    assert four["difference"] == pytest.approx(25)
    assert four["low"] < 0 < four["high"]
    row = measured(some)
    assert (row["first"], row["oracle"][8]) == (0.25, 0.75)
    assert row["drawn_until_pass"][4] == (2 + 2 + 3 + 4) / 4
    assert (row["wrong"], row["wrong_passed"], row["right_candidates"], row["right_refused"]) == (25, 1, 7, 5)
    assert (row["draw_seconds"], row["judge_seconds"]) == (pytest.approx(1.0), pytest.approx(0.1))


def test_samples_do_not_depend_on_how_many_there_are():
    few, many = samples({"counting": 2}, 0), samples(dict.fromkeys(ROWS, 3), 0)
    chosen = [one for one in many if one.row == "counting" and one.index < 2]
    assert [(one.text, one.seeds) for one in few] == [(one.text, one.seeds) for one in chosen]
    assert chosen[0].seeds[3] == chosen[0].seed + 3 * 2**32


def test_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "judged.jsonl"
    path.write_text(json.dumps(vars(SECOND)) + "\n" + json.dumps(vars(FOOLED))[:40])
    assert list(kept_judgements(path).values()) == [SECOND]


def test_a_run_draws_once_and_reports(tmp_path, capsys):
    few = ["--n", "0", "--edits", "0", "--row", "background=1", "--row", "edit: background=1", "--out", str(tmp_path)]
    assert main([*few, "--draw-only"]) == 0
    pictures = {path: path.stat().st_mtime_ns for path in (tmp_path / "candidates").rglob("*.png")}
    assert len(pictures) == 2
    assert main(few) == 0
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    rows = json.loads((tmp_path / "best_of.json").read_text())["rows"]
    assert list(rows) == ["background", "edit: background", "all drawings", "all edits"]
    assert "| background " in capsys.readouterr().out
    assert (tmp_path / "best_of.md").exists()


def test_rows_that_are_not_there(tmp_path, capsys):
    assert main(["--row", "colour=3", "--out", str(tmp_path)]) == 2
    assert DRAWINGS[0] in capsys.readouterr().err
