"""`mobileo-mlx eval dpg` and `imgedit`: folders for other projects' scorers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from batch.faking import FakeModel
from PIL import Image

from evals.conftest import Command
from mobileo_mlx.evals import dpg
from mobileo_mlx.image_settings import read_metadata


def write_prompts(folder: Path, **prompts: str) -> None:
    folder.mkdir()
    for name, text in prompts.items():
        (folder / f"{name}.txt").write_text(text)


def write_edits(folder: Path, edits: dict[str, object]) -> None:
    (folder / "animal").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "animal" / f"{name}.jpg")
    (folder / "basic_edit.json").write_text(json.dumps(edits))


EDITS: dict[str, object] = {
    "1082": {"id": "animal/a.jpg", "prompt": "make it blue", "edit_type": "adjust"},
    "7": {"id": "animal/b.jpg", "prompt": "make it green", "edit_type": "adjust"},
}


def test_the_official_prompts() -> None:
    """ELLA's repository has 1065 files; its scorer looks for their names."""
    prompts = dpg.read_prompts()
    assert len({prompt.name for prompt in prompts}) == len(prompts) == 1065
    assert [prompt.name for prompt in prompts[:3]] == ["0", "1", "2"]
    assert {"partiprompts12", "COCOval2014000000010363"} <= {prompt.name for prompt in prompts}
    assert prompts[0].text.startswith("An expansive field, blanketed by the soft light of morning")
    assert all(prompt.text == prompt.text.strip() != "" for prompt in prompts)


def test_a_sheet_of_four_pictures_for_each_prompt(command: Command, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", one="a red circle", two="a blue square")
    status, out, _ = command("dpg", "--prompts", "prompts", "--out", "out", "-m", "tiny", "--limit", 1, "--steps", 4)
    assert (status, out.partition(", 4 pictures drawn now")[0]) == (0, "out: 1 sheet")
    sheet = np.asarray(Image.open(tmp_path / "out" / "one.png"))
    single = [np.asarray(Image.open(tmp_path / "out" / "batch" / "0000" / f"00000-{i}.png")) for i in range(4)]
    side = single[0].shape[0]
    assert sheet.shape == (2 * side, 2 * side, 3)
    for i, picture in enumerate(single):  # where the official scorer cuts them out
        top, left = i // 2 * side, i % 2 * side
        np.testing.assert_array_equal(sheet[top : top + side, left : left + side], picture)
    seeds = [read_metadata(tmp_path / "out" / "batch" / "0000" / f"00000-{i}.png")["seed"] for i in range(4)]
    assert seeds == [42, 43, 44, 45]


def test_dpg_goes_on(command: Command, fake: FakeModel, tmp_path: Path) -> None:
    assert command("dpg", "--out", "out", "--limit", 1)[0] == 0
    log = tmp_path / "log"
    assert len(log.read_text().splitlines()) == 4
    status, text, _ = command("dpg", "--out", "out", "--limit", 2, "--json")
    report = json.loads(text)
    assert (status, report["sheets"], report["computed"], report["failed"]) == (0, 2, 4, 0)
    (tmp_path / "out" / "0.png").unlink()
    assert command("dpg", "--out", "out", "--limit", 2)[1] == "out: 2 sheets\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.png", "1.png", "batch"}
    assert len(log.read_text().splitlines()) == 8


def test_a_sheet_with_a_picture_that_failed_is_left_out(command: Command, fake: FakeModel, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", bad="fail here", good="a star")
    status, out, _ = command("dpg", "--prompts", "prompts", "--out", "out")
    assert status == 1
    assert out.startswith("out: 1 sheet, 4 pictures failed (see ")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["good.png"]


def test_images_are_edited_to_their_keys(command: Command, tmp_path: Path) -> None:
    write_edits(tmp_path / "data", EDITS)
    status, out, _ = command("imgedit", "--data", "data", "--out", "out", "-m", "tiny", "--steps", 4)
    assert (status, out.partition(", 2 pictures drawn now")[0]) == (0, "out: 2 images")
    settings = read_metadata(tmp_path / "out" / "1082.png")
    assert (settings["task"], settings["prompt"], settings["seed"]) == ("edit", "make it blue", 42)
    assert read_metadata(tmp_path / "out" / "7.png")["prompt"] == "make it green"
    assert command("imgedit", "--data", "data", "--out", "out", "-m", "tiny", "--steps", 4)[1] == "out: 2 images\n"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({}, "has no entries"),
        ({"1": {"id": "animal/a.jpg"}}, "has no texts 'id' and 'prompt' for 1"),
        ({"1": "make it blue"}, "has no texts 'id' and 'prompt' for 1"),
        ({"1": {"id": "animal/c.jpg", "prompt": "make it blue"}}, "animal/c.jpg' is missing"),
        ({"1": {"id": "../a.jpg", "prompt": "make it blue"}}, "outside of its folder"),
        ({"../1": {"id": "animal/a.jpg", "prompt": "make it blue"}}, "can't be the name of a file"),
        ({"1": {"id": "animal/a.jpg", "prompt": " "}}, "is empty"),
    ],
)
def test_lists_of_edits_that_are_wrong(
    command: Command, fake: FakeModel, tmp_path: Path, edits: dict[str, object], words: str
) -> None:
    write_edits(tmp_path / "data", edits)
    status, _, err = command("imgedit", "--data", "data", "--out", "out")
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
    assert not (tmp_path / "out").exists()


def test_folders_that_are_missing(command: Command, fake: FakeModel, tmp_path: Path) -> None:
    assert "there is no folder 'data'" in command("imgedit", "--data", "data", "--out", "out")[2]
    (tmp_path / "data").mkdir()
    assert "'data' holds no basic_edit.json" in command("imgedit", "--data", "data", "--out", "out")[2]
    assert "there is no folder 'prompts'" in command("dpg", "--prompts", "prompts", "--out", "out")[2]
    assert "'data' holds no prompts" in command("dpg", "--prompts", "data", "--out", "out")[2]
    (tmp_path / "data" / "a.txt").write_text("\n")
    status, _, err = command("dpg", "--prompts", "data", "--out", "out")
    assert (status, "a.txt' is empty" in err) == (2, True)
    assert not (tmp_path / "out").exists()
