"""Presets beside the default: the arithmetic of pairs, and a short run on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import presets, report
from benchmarks.paired_stats import Sample, Variant, difference, mcnemar
from mobileo_mlx import MobileO


def test_a_short_run_on_the_bundled_model(tmp_path: Path) -> None:
    arguments = ["--n", "2", "--edits", "1", "--questions", "1", "--only", "fast", "--only", "small"]
    assert presets.main([*arguments, "--out", str(tmp_path)]) == 0
    by_name = {(row["task"], row["preset"]): row for row in written(tmp_path)}
    assert set(by_name) == {(task, name) for task in ("draw", "edit", "ask") for name in ("fast", "small")} - {
        ("ask", "fast")
    }
    fast, small = (by_name["draw", name] for name in ("fast", "small"))
    assert fast["n"] == small["n"] == 2
    assert small["passes"] == 40 > fast["passes"]
    assert fast["default_right"] == small["default_right"] >= 1  # the model is a trained one
    assert fast["offered"] is False  # two samples prove nothing
    assert "drawings, fast" in (tmp_path / "presets.md").read_text()
    assert any(line.met is False and "fast" in line.name for line in report.lines(tmp_path))


def test_what_is_tried_is_told_apart_and_earlier_rows_stay(tmp_path: Path) -> None:
    few = ["--edits", "0", "--questions", "1", "--out", str(tmp_path)]
    assert presets.main(["--n", "1", *few, "--only", "fast", "--drawing", "steps=2,guidance_interval=0.5:1"]) == 0
    assert presets.main(["--n", "2", *few, "--quantize", "lm_head=4", "--quantize", "dit=4"]) == 0
    assert presets.main(["--n", "2", *few, "--only", "fast"]) == 0
    told = [(row["task"], row["preset"], row["n"], row["tried"]) for row in written(tmp_path)]
    assert told == [
        ("draw", "fast", 2, False),
        ("draw", "steps=2,guidance_interval=0.5:1", 1, True),
        ("draw", "dit=4", 2, True),
        ("ask", "lm_head=4", 1, True),  # each where it changes something
    ]
    assert {"steps": 2, "guidance_interval": [0.5, 1.0]} in [row["settings"] for row in written(tmp_path)]
    text = (tmp_path / "presets.md").read_text()
    assert text.index("Presets") < text.index("Bits that were tried") < text.index("drawings, dit=4")
    assert not any("dit=4" in line.name or "steps=2" in line.name for line in report.lines(tmp_path))


def written(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "presets.json").read_text())["rows"]
    return rows


def test_samples_are_the_same_in_every_share_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Variant("default", drawing={"steps": 4})]
    counts = {"draw": 2}
    whole = presets.measured("tiny", chosen, counts, 5, tmp_path)["draw"]["default"]
    shared = [presets.measured("tiny", chosen, counts, 5, tmp_path, (i, 2))["draw"]["default"] for i in (0, 1)]
    assert [sample.right for sample in whole] == [one.right for (one,) in shared]
    monkeypatch.setattr(presets, "_RUN", {"draw": pytest.fail})  # nothing can be measured
    with next(tmp_path.glob("*0-of-1.jsonl")).open("a") as lines:
        lines.write('["torn')
    assert presets.measured("tiny", chosen, counts, 5, tmp_path)["draw"]["default"] == whole


def test_several_prompts_at_once_are_drawn_as_each_alone() -> None:
    model = MobileO.load("tiny", dtype="float32")  # in half precision rounding depends on the number of rows
    source = Image.fromarray(np.full((64, 64, 3), 200, np.uint8))
    wanted = [("a red circle", None, 3), ("a blue square above a green star", None, 4), ("add a red star", source, 5)]
    options: dict[str, Any] = {"steps": 4, "guidance_interval": (0.0, 0.9)}
    pictures, passes, _ = presets.drawn(model, wanted, options)
    alone = [
        model.generate(text, seed=seed, **options) if image is None else model.edit(image, text, seed=seed, **options)
        for text, image, seed in wanted
    ]
    for picture, result in zip(pictures, alone, strict=True):
        expected = np.asarray(result.images[0].convert("RGB")).astype(int)
        assert np.abs(picture - expected).max() <= 1  # of 255
    assert passes == 4 + 2  # levels 1, 0.95, 0.86 and 0.67


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
        fast, small = presets.rows(found, chosen, seed=0)
        assert (fast["lost"], fast["won"], fast["offered"]) == (wrong, 0, offered)
        assert fast["difference"] == pytest.approx(-wrong / 20)
        assert small["offered"] is None  # memory is chosen for what it saves


@pytest.mark.parametrize(
    "arguments",
    [
        ["--n", "0"],
        ["--only", "full"],
        ["--processes", "0"],
        ["--n", "1", "--processes", "2"],
        ["--quantize", "llm=7"],
        ["--drawing", "steps=many"],
        ["--drawing", "bits=4"],
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert presets.main(arguments) == 2
    assert capsys.readouterr().err.startswith("presets: error: ")
