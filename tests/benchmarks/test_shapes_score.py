import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import scoring
from benchmarks.shapes import score
from benchmarks.shapes.__main__ import main
from benchmarks.shapes.gallery import gallery
from benchmarks.shapes.report import Score, ScoreReport, table, wilson, write_json
from benchmarks.shapes.score import Scored, score_answers, score_drawing, score_edits
from benchmarks.shapes.world import render

COUNT = 12


class Oracle:
    """Knows every sample that is drawn from the world, and does what it says, or in part what it should not."""

    default_size = (64, 64)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sees: bool = True):
        self.scenes: dict[str, Any] = {}
        self.questions: dict[tuple[str, bytes], str] = {}
        self.edits: dict[tuple[str, bytes], Any] = {}
        self.seeds: list[int] = []
        self.sees = sees
        for name, keep in (("sample_caption", self.keep_caption), ("sample_question", self.keep_question),
                           ("sample_edit", self.keep_edit)):  # fmt: skip
            monkeypatch.setattr(score, name, self.watched(getattr(score, name), keep))

    def watched(self, sample: Any, keep: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            thing = sample(*arguments, **options)
            keep(thing)
            return thing

        return call

    def keep_caption(self, caption: Any) -> None:
        self.scenes[caption.text] = caption.scene

    def keep_question(self, question: Any) -> None:
        self.questions[question.text, render(question.scene, 64).tobytes()] = question.answer

    def keep_edit(self, edit: Any) -> None:
        self.edits[edit.text, render(edit.before, 64).tobytes()] = edit.after

    def generate(self, prompt: str, *, seed: list[int]) -> Any:
        assert len(seed) <= scoring.BATCH
        self.seeds += seed
        return SimpleNamespace(images=[Image.fromarray(render(self.scenes[prompt], 128))] * len(seed))

    def ask(self, image: Image.Image, question: str, *, max_tokens: int) -> Any:
        known = self.questions.get((question, image.tobytes())) if self.sees else None
        return SimpleNamespace(text=f" {(known or 'yes').capitalize()}.")

    def edit(self, image: Image.Image, instruction: str, *, seed: int) -> Any:
        after = self.edits[instruction, image.tobytes()]
        return SimpleNamespace(images=[Image.fromarray(render(after, 64)) if self.sees else image])


def rows(parts: Any) -> dict[str, Score]:
    return {row.name: row for part in parts for row in part.rows}


def test_who_draws_right_has_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = Oracle(monkeypatch)
    scored = rows(score_drawing(oracle, COUNT, new="brown"))
    assert {name for name in scored if not name.startswith("(")} == {
        "single object", "colours", "counting", "two objects", "attribute binding", "position", "background",
        "held-out pairs", "brown",
    }  # fmt: skip
    assert all(row.accuracy == 1 for row in scored.values())
    assert len(set(oracle.seeds)) == 9 * COUNT


def test_who_draws_something_else_has_few(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = Oracle(monkeypatch)
    monkeypatch.setattr(oracle, "generate", lambda prompt, seed: SimpleNamespace(
        images=[Image.fromarray(render(next(iter(oracle.scenes.values())), 64))] * len(seed)
    ))  # fmt: skip
    scored = rows(score_drawing(oracle, COUNT))
    assert scored["attribute binding"].right == scored["counting"].right == 0
    assert scored["(background alone)"].right > scored["single object"].right


def test_who_answers_right_has_every_point_and_none_on_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = Oracle(monkeypatch)
    scored = rows(score_answers(oracle, COUNT, new="ring"))
    assert all(row.accuracy == 1 for row in scored.values())
    assert scored["colour"].blank == scored["where"].blank == 0
    # A blank image gets "yes" from the oracle: the most frequent answer, or the only other one.
    relation = scored["relation"]
    assert relation.prior is not None
    assert relation.blank in (relation.prior, COUNT - relation.prior)
    assert scored["relations"].total == 2 * COUNT


def test_who_does_not_look_stays_at_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle: Any = Oracle(monkeypatch, sees=False)
    scored = rows(score_answers(oracle, COUNT))
    assert all(row.right == row.blank for row in scored.values())
    assert scored["colour"].right == scored["describe"].right == 0
    # It always says yes, which is the most frequent answer or the only other one.
    prior = scored["presence"].prior
    assert prior is not None
    assert scored["presence"].right in (prior, COUNT - prior)


def test_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.accuracy == 1 for row in rows(score_edits(Oracle(monkeypatch), COUNT)).values())  # type: ignore[arg-type]
    blind: Any = Oracle(monkeypatch, sees=False)
    assert all(row.accuracy == 0 for row in rows(score_edits(blind, COUNT)).values())


def test_a_category_is_the_same_whatever_else_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for new in (None, "brown"):
        part = next(part for part in score_drawing(Oracle(monkeypatch), 5, new=new) if "position" in part.label)  # type: ignore[arg-type]
        texts.append([tile.text for tile in part.tiles])
    assert texts[0] == texts[1]


def test_wilson() -> None:
    # By the closed form: centre (p + z2/2n) / (1 + z2/n), half width as in Wilson, 1927.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(500, 500) == pytest.approx((0.9924, 1.0), abs=1e-4)


def test_report(tmp_path: Path) -> None:
    report = ScoreReport(
        "m", {"n": 4}, [Score("draw", "colours", 3, 4), Score("ask", "colour", 4, 4, blank=1, prior=2)]
    )
    head, _, draw, ask = ([cell.strip() for cell in line.strip("|").split("|")] for line in table(report))
    assert head[:2] == ["task", "category"]
    assert draw == ["draw", "colours", "3", "4", "0.750", "0.301 - 0.954", "", ""]
    assert ask[-2:] == ["0.250", "0.500"]
    write_json(report, tmp_path / "score.json")
    value = json.loads((tmp_path / "score.json").read_text())
    assert value["rows"][1]["blank"] == 0.25
    assert value["settings"] == {"n": 4}


def test_gallery_is_all_green() -> None:
    tiles = [tile for _, row in gallery(size=64, new="brown") for tile in row]
    assert len(tiles) > 60
    assert all(tile.right in (True, None) for tile in tiles)


def test_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", "--model", str(tiny_model), "--n", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--only", "draw", "--only", "edit"]) == 0
    assert "attribute binding" in capsys.readouterr().out
    value = json.loads((tmp_path / "out" / "score.json").read_text())
    assert value["settings"] == {"n": 1, "seed": 0, "quantize": None, "steps": 1}
    assert np.asarray(Image.open(tmp_path / "out" / "sheet.png")).shape[2] == 3
    assert main([*command, "--only", "ask"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_interrupted_run_shows_what_it_has(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> Iterator[Scored]:
        yield Scored([Score("draw", "colours", 1, 1)], "draw: colours", [])
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "score_drawing", stopped)
    assert main(["score", "--model", str(tiny_model), "--n", "1"]) == 130
    assert "| draw | colours" in capsys.readouterr().out


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--model", "m", "--n", "0"]) == 2
    assert main(["score", "--model", "m", "--new", "mauve"]) == 2
    assert main(["score", "--model", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.count("shapes: error: ") == 3
