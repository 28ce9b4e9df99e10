"""A line as a task: what it may hold, what is refused, and by what its result is known again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.batch.tasks import CAPTION, Common, LineError, file_name, options_of, read_task


@pytest.fixture
def common(tmp_path: Path) -> Common:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return Common(tmp_path, {"steps": 4, "max_tokens": 9}, ".png", {"weights": "w"})


def test_each_task(common: Common) -> None:
    image = str(common.folder / "a.png")
    drawn = read_task({"id": "cat", "prompt": "a cat", "seed": 3}, 1234, common)
    assert (drawn.task, drawn.text, drawn.images, drawn.path) == ("generate", "a cat", (), "0001/cat.png")
    assert drawn.options == {"steps": 4, "seed": 3}
    edited = read_task(
        {"task": "edit", "image": "a.png", "instruction": "redder", "strength": 0.5, "seed": 1}, 7, common
    )
    assert (edited.id, edited.images, edited.path) == ("7", (image,), "0000/7.png")
    assert edited.options == {"steps": 4, "strength": 0.5, "seed": 1}
    asked = read_task({"task": "ask", "image": ["a.png", image], "question": "what?", "seed": 0}, 1, common)
    assert (asked.images, asked.path, asked.options) == ((image, image), "", {"max_tokens": 9, "seed": 0})
    assert read_task({"task": "caption", "image": "a.png"}, 1, common).text == CAPTION


def test_lines_own_options_win_and_sizes_have_two_spellings(common: Common) -> None:
    wide = read_task({"prompt": "x", "steps": 2, "size": "96x64", "seed": 1}, 1, common)
    assert wide.options == {"steps": 2, "width": 96, "height": 64, "seed": 1}
    same = {"prompt": "x", "width": 96, "height": 64, "seed": 1, "steps": 2}
    assert read_task(same, 1, common).digest == wide.digest


def test_seeds_are_made_of_ids(common: Common) -> None:
    seeds = {read_task({"prompt": "x", "id": name}, 1, common).options["seed"] for name in "abc"}
    assert len(seeds) == 3
    assert read_task({"prompt": "x", "id": "a"}, 999, common).options["seed"] in seeds  # wherever the line is


def test_digests_tell_results_apart(common: Common) -> None:
    line = {"id": "a", "prompt": "x"}
    digest = read_task(line, 1, common).digest
    assert read_task({**line, "_note": "mine"}, 1, common).digest == digest
    others = [{**line, "id": "b"}, {**line, "prompt": "y"}, {**line, "steps": 5}, {**line, "seed": 1}]
    assert len({digest, *(read_task(other, 1, common).digest for other in others)}) == 5
    for changed in (
        Common(common.folder, {"steps": 5}, ".png", {"weights": "w"}),
        Common(common.folder, suffix=".jpg"),
    ):
        assert read_task(line, 1, changed).digest != digest


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ([], "not a JSON object"),
        ({}, "lacks 'prompt' (without 'task' it is 'generate')"),
        ({"task": "draw", "prompt": "x"}, "has the task 'draw'; there are generate, edit, ask, caption"),
        ({"task": [], "prompt": "x"}, "has the task []"),
        ({"prompt": 1}, "'prompt' is not text"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "x", "step": 3}, "has 'step', which generate does not have"),
        ({"prompt": "x", "steps": 0}, "steps 0 is not possible"),
        ({"prompt": "x", "steps": "3"}, "steps '3' is not possible"),
        ({"prompt": "x", "seed": -1}, "seed -1 is not possible"),
        ({"prompt": "x", "seed": [1, 2]}, "seed [1, 2] is not possible"),
        ({"prompt": "x", "size": "big"}, "write WIDTHxHEIGHT"),
        ({"prompt": "x", "strength": 0.5}, "has 'strength', which generate does not have"),
        ({"prompt": "x", "image": "a.png"}, "its task may be 'edit'"),
        ({"prompt": "x", "id": ""}, "has the id ''"),
        ({"prompt": "x", "id": ["a"]}, "has the id ['a']"),
        ({"prompt": "x", "id": True}, "has the id True"),
        ({"task": "edit", "instruction": "x"}, "lacks 'image'"),
        ({"task": "edit", "image": ["a.png"], "instruction": "x"}, "'image' is not the path of a file"),
        ({"task": "edit", "image": "b.png", "instruction": "x"}, "names the image 'b.png', and there is no such file"),
        ({"task": "ask", "image": "a.png"}, "lacks 'question'"),
        ({"task": "ask", "image": [], "question": "x"}, "lacks 'image'"),
        ({"task": "ask", "image": "https://x.org/a.png", "question": "x"}, "is a URL"),
        ({"task": "ask", "image": "a\0.png", "question": "x"}, "can't be done"),
        ({"task": "ask", "image": "a.png", "question": "x", "steps": 3}, "has 'steps', which ask does not have"),
    ],
)
def test_what_is_refused(common: Common, entry: Any, words: str) -> None:
    with pytest.raises(LineError) as caught:
        read_task(entry, 1, common, look=True)
    assert words in str(caught.value)


def test_a_size_that_the_model_can_not_draw_is_refused_before(tiny_model: Path, common: Common) -> None:
    from mobileo_mlx import MobileO

    known = Common(common.folder, config=MobileO.load(tiny_model).config)
    with pytest.raises(LineError, match="sides are multiples of"):
        read_task({"prompt": "x", "size": "65x64"}, 1, known, look=True)


def test_settings_that_do_not_fit_into_a_jpeg(tmp_path: Path) -> None:
    entry = {"prompt": "word " * 20_000}
    assert read_task(entry, 1, Common(tmp_path)).text
    with pytest.raises(LineError, match="too long for the settings in a JPEG"):
        read_task(entry, 1, Common(tmp_path, suffix=".jpg"))


def test_names_of_files() -> None:
    for name in ("a", "A-1_b.c", "0", "x" * 100):
        assert file_name(name) == name
    odd = ["../../etc/passwd", ".hidden", "a/b", "a\\b", "a:b", "Katze äöü", "猫", "x" * 101, "a.", "a b", "-a", "\n"]
    names = [file_name(name) for name in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert name[0] not in ".-"
        assert len(name) < 80
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-~")
    assert file_name("a/b") == "a-b~c14cddc0"


def test_options_are_the_declared_ones() -> None:
    assert {"seed", "steps", "width", "negative_prompt"} <= set(options_of("generate"))
    assert set(options_of("edit")) - set(options_of("generate")) == {"strength"}
    assert "initial_latents" not in options_of("edit")
