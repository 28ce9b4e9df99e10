"""The folder of pictures, ours and those of other programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from mobileo_mlx.atomic import add_name
from mobileo_mlx.errors import ExistsError, OutputError, PromptError
from mobileo_mlx.evals.geneval_folder import arrange, job_lines, make_folder, read_folder

PROMPTS = [
    {"tag": "single_object", "prompt": f"a {name}", "include": [{"class": name, "count": 1}]}
    for name in ("star", "circle", "cross")
]


def draw(folder: Path, *names: str) -> None:
    """What a batch with two samples of each prompt has drawn."""
    (folder / "batch" / "0000").mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 6), "red").save(folder / "batch" / "0000" / f"{name}.png")


def official(folder: Path, number: int, *names: str) -> None:
    """What upstream's script writes."""
    samples = folder / f"{number:05}" / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(PROMPTS[number % 3]))
    for name in names:
        Image.new("RGB", (8, 8)).save(samples / name)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_prompts_have_the_same_seeds() -> None:
    lines = list(job_lines(PROMPTS[:2], samples=2))
    assert lines == [
        {"id": "00000-00000", "prompt": "a star", "seed": 42},
        {"id": "00000-00001", "prompt": "a star", "seed": 43},
        {"id": "00001-00000", "prompt": "a circle", "seed": 42},
        {"id": "00001-00001", "prompt": "a circle", "seed": 43},
    ]


def test_what_a_prompt_asks_for_can_be_corrected_after_its_pictures_were_drawn(tmp_path: Path) -> None:
    """Otherwise they would be judged by what no file of prompts says any more."""
    draw(tmp_path, "00000-00000")
    arrange(tmp_path, PROMPTS[:1], samples=1)
    corrected = {**PROMPTS[0], "include": [{"class": "star", "count": 2}]}
    arrange(tmp_path, [corrected], samples=1)
    assert read_folder(tmp_path).prompts[0].metadata == corrected


def test_a_number_that_is_no_prompts_does_not_make_a_billion_missing(tmp_path: Path) -> None:
    official(tmp_path, 0, "00000.png")
    (tmp_path / "00000").rename(tmp_path / "99999999999")
    with pytest.raises(PromptError, match="holds no pictures of GenEval"):
        read_folder(tmp_path)


def test_pictures_get_their_official_names_as_they_come(tmp_path: Path) -> None:
    draw(tmp_path, "00000-00000", "00000-00001", "00002-00001")
    arrange(tmp_path, PROMPTS, samples=2)
    expected = [
        *(f"{number:05}/metadata.jsonl" for number in range(3)),
        *("00000/grid.png", "00000/samples/00000.png", "00000/samples/00001.png", "00002/samples/00001.png"),
        *(f"batch/0000/{name}.png" for name in ("00000-00000", "00000-00001", "00002-00001")),
    ]
    assert files(tmp_path) == sorted(expected)
    assert json.loads((tmp_path / "00001" / "metadata.jsonl").read_text()) == PROMPTS[1]
    with Image.open(tmp_path / "00000" / "grid.png") as grid:
        assert grid.size == (16, 6)
    picture = tmp_path / "00000" / "samples" / "00000.png"
    assert picture.samefile(tmp_path / "batch" / "0000" / "00000-00000.png")  # and takes no space twice
    draw(tmp_path, "00002-00000")
    arrange(tmp_path, PROMPTS, samples=2)
    assert len(files(tmp_path)) == len(expected) + 3


def test_a_picture_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    draw(tmp_path, "00000-00000")
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    (tmp_path / "00000" / "samples" / "00000.png").write_bytes(b"mine")
    with pytest.raises(ExistsError, match=r"samples/00000\.png"):
        arrange(tmp_path, PROMPTS, samples=2)


def test_without_links_a_second_name_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*names: object, **more: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_bytes(b"data")
    for _ in range(2):
        add_name(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"data"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    (tmp_path / "b").write_bytes(b"tada")
    with pytest.raises(ExistsError):
        add_name(tmp_path / "a", tmp_path / "b")


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"holds other things \('thesis.tex'\)"):
        make_folder(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        make_folder(tmp_path / "thesis.tex")
    assert make_folder(tmp_path / "new").is_dir()


def test_the_official_layout_is_read_and_what_is_missing_named(tmp_path: Path) -> None:
    official(tmp_path, 0, "0000.png", "0001.png", "0002.png")  # as in the readme of GenEval
    official(tmp_path, 2, "0001.png", "notes.txt.png", "0000.jpg.png")
    official(tmp_path, 3)
    (tmp_path / "samples").mkdir()
    (tmp_path / "results.jsonl").write_text("")
    found = read_folder(tmp_path)
    assert [prompt.path.name for prompt in found.prompts] == ["00000", "00002", "00003"]
    assert found.prompts[1].metadata == PROMPTS[2]
    assert found.count == 4
    assert list(found.missing) == [
        "00001",
        *("00002/samples/0000.png", "00002/samples/0002.png"),
        *(f"00003/samples/000{sample}.png" for sample in range(3)),
    ]


@pytest.mark.parametrize("text", ["", "{", '{"tag": "x"}'])
def test_damaged_metadata_are_named(tmp_path: Path, text: str) -> None:
    official(tmp_path, 0, "0000.png")
    (tmp_path / "00000" / "metadata.jsonl").write_text(text)
    with pytest.raises(PromptError, match=r"00000/metadata\.jsonl' .*; write the prompt's line"):
        read_folder(tmp_path)


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no folder"):
        read_folder(tmp_path / "none")
    official(tmp_path, 0)
    with pytest.raises(PromptError, match="holds no pictures of GenEval"):
        read_folder(tmp_path)
    (tmp_path / "00000" / "metadata.jsonl").unlink()
    with pytest.raises(PromptError, match=r"metadata\.jsonl' can't be read"):
        read_folder(tmp_path)
