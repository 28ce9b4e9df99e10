"""Presets beside the default: the arithmetic of pairs, and a short run on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import presets, report
from benchmarks.presets import Sample, Variant, difference, mcnemar


def test_a_short_run_on_the_bundled_model(tmp_path: Path) -> None:
    arguments = ["--n", "4", "--edits", "1", "--questions", "1", "--only", "fast", "--only", "small"]
    assert presets.main([*arguments, "--out", str(tmp_path)]) == 0
    value = json.loads((tmp_path / "presets.json").read_text())
    by_name = {(row["task"], row["preset"]): row for row in value["rows"]}
    assert set(by_name) == {
        (task, name) for task in ("draw", "edit", "ask") for name in ("default", "fast", "small")
    } - {("ask", "fast")}
    drawn = {name: by_name["draw", name] for name in ("default", "fast", "small")}
    assert [row["n"] for row in drawn.values()] == [4] * 3
    assert drawn["default"]["passes"] == drawn["small"]["passes"] == 40 > drawn["fast"]["passes"]
    assert drawn["default"]["right"] >= 2  # the model is a trained one
    assert drawn["default"]["seconds"] > drawn["fast"]["seconds"] > 0
    assert drawn["fast"]["offered"] is False  # four samples prove nothing
    assert "drawings, fast" in (tmp_path / "presets.md").read_text()
    assert any(line.met is False and "fast" in line.name for line in report.lines(tmp_path))


def test_samples_are_the_same_in_every_share_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Variant("default")]
    counts = {"draw": 2}
    whole = presets.measured("tiny", chosen, counts, 5, tmp_path)["draw"]["default"]
    shared = [presets.measured("tiny", chosen, counts, 5, tmp_path, (i, 2))["draw"]["default"] for i in (0, 1)]
    assert [sample.right for sample in whole] == [one.right for (one,) in shared]
    monkeypatch.setattr(presets, "_RUN", {"draw": pytest.fail})  # nothing can be measured
    with next(tmp_path.glob("*0-of-1.jsonl")).open("a") as lines:
        lines.write('["torn')
    assert presets.measured("tiny", chosen, counts, 5, tmp_path)["draw"]["default"] == whole


def test_newcombes_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 2635, table III: cells 36, 12, 2, 0 of 50, by method 10.
    share, low, high = difference(36, 2, 12, 0)
    assert share == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_equal_pairs_tell_no_difference_and_more_of_them_tell_it_better() -> None:
    few, many = difference(90, 0, 0, 10), difference(9000, 0, 0, 1000)
    assert few[0] == many[0] == 0
    assert few[1] < many[1] < 0 < many[2] < few[2]


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (0, 1, 1.0), (1, 8, 0.0390625)]
)
def test_mcnemar(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(p)


def test_what_may_lose_more_than_a_point_is_not_offered() -> None:
    chosen = [Variant("default"), Variant("fast", drawing={"steps": 9}), Variant("small", bits={"llm": 4})]

    def samples(wrong: int) -> list[Sample]:
        return [Sample(index >= wrong, 10, 0.5) for index in range(2000)]

    for wrong, offered in ((0, True), (40, False)):
        found = {"draw": {"default": samples(0), "fast": samples(wrong), "small": samples(wrong)}}
        _, fast, small = presets.rows(found, chosen)
        assert (fast["lost"], fast["won"], fast["offered"]) == (wrong, 0, offered)
        assert fast["difference"] == pytest.approx(-wrong / 20)
        assert small["offered"] is None  # memory is chosen for what it saves


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--only", "full"], ["--processes", "0"]])
def test_mistakes_are_told_in_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert presets.main(arguments) == 2
    assert capsys.readouterr().err.startswith("presets: error: ")
