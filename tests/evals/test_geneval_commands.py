"""`mobileo-mlx eval geneval` and `geneval-score` as their users run them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from batch.faking import FakeModel
from mobileo_cli import printing
from PIL import Image

from benchmarks.shapes.geneval import write_prompts
from evals.conftest import Command
from mobileo_mlx.evals.detections import Detection
from mobileo_mlx.evals.geneval_prompts import TAGS
from mobileo_mlx.image_settings import read_metadata

SHAPES = "benchmarks.shapes.detector:Detector"


class Counting:
    """Finds a bench in every picture, and counts the pictures that it has looked at."""

    looked = 0
    stop_at = 0  # the picture before which somebody presses Ctrl-C

    def detect(self, image: Image.Image) -> list[Detection]:
        if Counting.looked + 1 == Counting.stop_at:
            raise KeyboardInterrupt
        Counting.looked += 1
        return [Detection("bench", (0.0, 0.0, 4.0, 4.0), 0.95)]

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        return ["red"] * len(found)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Counting, "looked", 0)
    monkeypatch.setattr(Counting, "stop_at", 0)
    monkeypatch.setattr("benchmarks.shapes.detector.Counting", Counting, raising=False)
    return "benchmarks.shapes.detector:Counting"


def test_the_small_model_from_prompts_to_the_report(command: Command, tmp_path: Path) -> None:
    """With prompts of the world of shapes, and their scorer as the detector."""
    counts = write_prompts(tmp_path / "prompts.jsonl", 1)
    assert counts == dict.fromkeys(TAGS, 1)
    drawn = command("geneval", "--prompts", "prompts.jsonl", "--out", "out", "-m", "tiny", "--samples", 1)
    assert drawn[0] == 0
    assert drawn[1].startswith("out: 6 pictures of 6 prompts, 6 of them now in ")
    assert drawn[1].endswith("next: mobileo-mlx eval geneval-score out\n")
    settings = read_metadata(tmp_path / "out" / "00005" / "samples" / "00000.png")
    assert (settings["steps"], settings["guidance_scale"], settings["seed"]) == (20, 1.5, 42)
    status, text, _ = command("geneval-score", "out", "--backend", SHAPES, "--json")
    report = json.loads(text)
    assert (status, report["images"], report["prompts"], report["missing"]) == (0, 6, 6, [])
    assert list(report["tasks"]) == list(TAGS)
    assert report["overall"]["score"] >= 0.8  # of the small model's pictures nearly all are right
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert lines[0]["filename"] == "out/00000/samples/00000.png"
    assert sum(line["correct"] for line in lines) == sum(task["correct"] for task in report["tasks"].values())
    assert all(line["correct"] is (line["reason"] == "") for line in lines)
    boxes = json.loads(lines[0]["details"])
    (name,) = boxes
    assert name == json.loads(lines[0]["metadata"])["include"][0]["class"]
    assert len(boxes[name][0]) == 5


def test_the_official_prompts_a_second_run_and_more_of_them(command: Command, fake: FakeModel, tmp_path: Path) -> None:
    assert command("geneval", "--out", "out", "--limit", 2)[0] == 0
    log = tmp_path / "log"
    assert log.read_text().splitlines() == ["a photo of a bench"] * 4 + ["a photo of a cow"] * 4
    assert "8 pictures of 2 prompts\n" in command("geneval", "--out", "out", "--limit", 2)[1]
    status, text, _ = command("geneval", "--out", "out", "--limit", 3, "--json")
    assert (status, json.loads(text)["pictures"], json.loads(text)["computed"]) == (0, 12, 4)
    assert len(log.read_text().splitlines()) == 12
    metadata = json.loads((tmp_path / "out" / "00000" / "metadata.jsonl").read_text())
    assert metadata["include"] == [{"class": "bench", "count": 1}]


def test_other_prompts_in_the_same_folder_are_refused_and_change_nothing(
    command: Command, fake: FakeModel, tmp_path: Path
) -> None:
    command("geneval", "--out", "out", "--limit", 1, "--samples", 1)
    before = sorted(path for path in (tmp_path / "out").rglob("*"))
    write_prompts(tmp_path / "prompts.jsonl", 1)
    status, _, err = command("geneval", "--out", "out", "--prompts", "prompts.jsonl")
    assert (status, err.count("\n")) == (2, 2)
    assert "was begun with other tasks" in err
    status, _, err = command("geneval", "--out", "out", "--limit", 1, "--samples", 1, "--steps", 3)
    assert status == 2
    assert "steps was not given and is 3" in err
    assert sorted(path for path in (tmp_path / "out").rglob("*")) == before


def test_an_interrupted_run_has_named_what_it_drew(
    command: Command, fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = fake.generate

    def interrupted(prompt: str, **options: Any) -> Any:
        if len((tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []) == 5:
            raise KeyboardInterrupt
        return draw(prompt, **options)

    monkeypatch.setattr(fake, "generate", interrupted)
    assert command("geneval", "--out", "out", "--limit", 2)[0] == 130
    assert len(list((tmp_path / "out").glob("0*/samples/*.png"))) == 5
    monkeypatch.setattr(fake, "generate", draw)
    status, text, _ = command("geneval-score", "out", "--backend", SHAPES, "--json")
    missing = [f"00001/samples/0000{sample}.png" for sample in (1, 2, 3)]
    assert (status, json.loads(text)["missing"], json.loads(text)["comparable"]) == (0, missing, False)
    assert command("geneval", "--out", "out", "--limit", 2)[0] == 0
    assert len(list((tmp_path / "out").glob("0*/samples/*.png"))) == 8


def test_nothing_is_left_where_there_is_no_model(command: Command, tmp_path: Path) -> None:
    status, _, err = command("geneval", "--out", "out", "-m", tmp_path / "none")
    assert status == 2
    assert "none" in err
    assert not (tmp_path / "out").exists()


def test_pictures_that_fail_are_said(command: Command, fake: FakeModel, tmp_path: Path) -> None:
    prompts = [{"tag": "x", "prompt": text, "include": [{"class": "a", "count": 1}]} for text in ("fine", "fail")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    status, out, _ = command("geneval", "--out", "out", "--prompts", "prompts.jsonl", "--samples", 1)
    assert status == 1
    assert "1 picture of 2 prompts, 1 failed (see " in out


def test_scoring_goes_on_and_only_new_pictures_are_looked_at(
    command: Command, fake: FakeModel, counting: str, tmp_path: Path
) -> None:
    command("geneval", "--out", "out", "--limit", 2)
    Counting.stop_at = 6
    assert command("geneval-score", "out", "--backend", counting)[0] == 130
    assert not (tmp_path / "out" / "results.jsonl").exists()
    Counting.stop_at = 0
    status, text, _ = command("geneval-score", "out", "--backend", counting)
    assert (status, Counting.looked) == (0, 8)
    assert "single_object        2       8        4  0.5000" in text
    command("geneval-score", "out", "--backend", counting)
    assert Counting.looked == 8
    (tmp_path / "out" / "00000" / "samples" / "00001.png").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "out" / "00000" / "samples" / "00001.png")
    command("geneval-score", "out", "--backend", counting)
    assert Counting.looked == 9


def test_a_line_that_a_killed_process_left_unfinished_costs_one_picture(
    command: Command, fake: FakeModel, counting: str, tmp_path: Path
) -> None:
    command("geneval", "--out", "out", "--limit", 2)
    command("geneval-score", "out", "--backend", counting)
    kept = tmp_path / "out" / ".results-kept.jsonl"
    kept.write_bytes(kept.read_bytes()[:-20])
    for _ in range(2):
        assert command("geneval-score", "out", "--backend", counting)[0] == 0
        assert Counting.looked == 9


def test_a_partial_run_says_so(command: Command, fake: FakeModel, counting: str, tmp_path: Path) -> None:
    command("geneval", "--out", "out", "--limit", 9)
    for sample in range(4):
        for number in range(1, 4):
            (tmp_path / "out" / f"{number:05}" / "samples" / f"{sample:05}.png").unlink()
    status, text, _ = command("geneval-score", "out", "--backend", counting, "--out", "elsewhere.jsonl")
    assert status == 0
    assert "Partial: 6 of the 553 official prompts; the paper's numbers are of all." in text
    assert "Partial: 00001/samples/00000.png, 00001/samples/00001.png, " in text
    assert "00003/samples/00001.png and 2 others are missing." in text
    assert "paper, Mobile-O-0.5B" in text
    assert (tmp_path / "elsewhere.jsonl").is_file()


def test_a_damaged_picture_is_named_and_the_others_stay_known(
    command: Command, fake: FakeModel, counting: str, tmp_path: Path
) -> None:
    command("geneval", "--out", "out", "--limit", 2)
    broken = tmp_path / "out" / "00001" / "samples" / "00000.png"
    broken.unlink()
    broken.write_bytes(b"no picture")
    status, _, err = command("geneval-score", "out", "--backend", counting)
    assert (status, Counting.looked) == (2, 4)
    assert "out/00001/samples/00000.png" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["geneval-score", "none"], "there is no folder 'none'"),
        (["geneval-score", ".", "--out", "results.json"], "choose a name that ends with .jsonl"),
        (["geneval", "--out", "out", "--prompts", "none"], "'none' can't be read"),
        (["geneval", "--out", "out", "--seed", "-1"], "task '00000-00000' can't be done: seed -1 is not possible"),
        (["geneval", "--out", "out", "--steps", "0"], "steps 0 is not possible"),
    ],
)
def test_mistakes(command: Command, fake: FakeModel, words: list[str], sentence: str) -> None:
    status, _, err = command(*words)
    assert status == 2
    assert sentence in err.splitlines()[-1]
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("name", ["no.such.module:Detector", "benchmarks.shapes.detector:None", "x:", ":x"])
def test_detectors_that_do_not_exist(command: Command, fake: FakeModel, tmp_path: Path, name: str) -> None:
    command("geneval", "--out", "out", "--limit", 1, "--samples", 1)
    status, _, err = command("geneval-score", "out", "--backend", name)
    assert status == 2
    assert f"there is no detector '{name}'" in err


def test_a_detector_may_be_a_file_in_the_working_directory(
    command: Command, fake: FakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("geneval", "--out", "out", "--limit", 1, "--samples", 1)
    methods = (
        "    def detect(self, image):\n        return []\n    def colours(self, image, found):\n        return []\n"
    )
    (tmp_path / "blind_detector.py").write_text(f"class Blind:\n{methods}")
    status, text, _ = command("geneval-score", "out", "--backend", "blind_detector:Blind", "--json")
    assert (status, json.loads(text)["overall"]["score"]) == (0, 0.0)


def test_progress_can_be_followed(command: Command, fake: FakeModel, counting: str) -> None:
    try:
        _, _, err = command("geneval", "--out", "out", "--limit", 1, "--progress", "json")
        steps = [json.loads(line) for line in err.splitlines() if '"step"' in line]
        assert (steps[-1]["label"], steps[-1]["done"], steps[-1]["total"]) == ("geneval", 4, 4)
        _, _, err = command("geneval-score", "out", "--backend", counting)
        steps = [json.loads(line) for line in err.splitlines() if '"step"' in line]
        assert (steps[-1]["label"], steps[-1]["done"]) == ("scoring", 4)
    finally:
        printing.set_progress("auto")
