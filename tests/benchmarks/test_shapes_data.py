import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.__main__ import main
from benchmarks.shapes.data import write_quadruplets
from benchmarks.shapes.scorer import Reading, read_picture
from mobileo_mlx.errors import OptionError, OutputError


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def reading(folder: Path, name: str) -> Reading:
    return read_picture(np.asarray(Image.open(folder / name)))


def test_samples(tmp_path: Path) -> None:
    path = write_quadruplets(tmp_path / "set", 60, edits=0.4)
    records = lines(path)
    assert len(records) == 60
    edits = [record for record in records if "source_image" in record]
    assert 12 <= len(edits) <= 36
    for record in records:
        assert set(record) - {"source_image"} == {"prompt", "image", "question", "answer"}
        found = reading(path.parent, record["image"])
        assert all(thing.shape in record["prompt"] for thing in found.objects if "source_image" not in record)
        assert record["question"].endswith(("?", "."))
    for record in edits:
        assert record["prompt"].startswith(("make ", "change ", "remove ", "add "))
        before, after = (reading(path.parent, record[key]) for key in ("source_image", "image"))
        assert before != after
        # Questions are about the result.
        if record["question"] == "what color is the background?":
            assert record["answer"] == after.background


def test_several_questions(tmp_path: Path) -> None:
    records = lines(write_quadruplets(tmp_path / "set", 10, questions=3, edits=0.0))
    assert all(len(record["qa"]) == 3 for record in records)
    assert all(set(pair) == {"question", "answer"} for record in records for pair in record["qa"])


@pytest.mark.parametrize("name", ["brown", "ring"])
def test_something_new(tmp_path: Path, name: str) -> None:
    records = lines(write_quadruplets(tmp_path / "set", 200, new=name))
    shown = [record for record in records if name in record["question"] + record["answer"]]
    assert 80 <= len(shown) <= 120
    assert all(name in record["prompt"] or "source_image" in record for record in shown)
    others = [record for record in records if record not in shown]
    assert not any(name in record["prompt"] for record in others)


def test_same_seed_same_files(tmp_path: Path) -> None:
    first, second, third = (write_quadruplets(tmp_path / n, 5, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()
    image = "images/00003.png"
    assert (first.parent / image).read_bytes() == (second.parent / image).read_bytes()


def test_bad_options(tmp_path: Path) -> None:
    for options in ({"count": 0}, {"count": 1, "edits": 2.0}, {"count": 1, "new": "mauve"}, {"count": 1, "size": 4}):
        with pytest.raises(OptionError):
            write_quadruplets(tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_quadruplets(tmp_path, 1)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert main(["quadruplets", "--out", str(out), "--n", "3", "--size", "32"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "quadruplets.jsonl")
    assert Image.open(out / "images/00000.png").size == (32, 32)
    assert main(["quadruplets", "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["render", "--out", str(tmp_path / "sheet.png"), "--size", "64", "--new", "ring"]) == 0
    assert Image.open(tmp_path / "sheet.png").width > 1000
