"""The output folder as the state: torn lines, foreign pictures, other settings."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.batch import folder as module
from mobileo_mlx.batch.folder import FAILED, Folder, check_manifest, make_folder
from mobileo_mlx.batch.perform import with_settings, write_picture
from mobileo_mlx.batch.tasks import Common, Task, read_task
from mobileo_mlx.errors import OptionError, OutputError
from mobileo_mlx.files import kind_of
from mobileo_mlx.image_settings import read_metadata


def answer_task(line: int) -> Task:
    return Task(line, f"q{line}", "ask", "what?", digest=f"digest {line}")


def test_answers_are_found_again(tmp_path: Path) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    for line in (1, 3, 1003):
        first.add_answer(answer_task(line), {"text": f"answer {line}"})
    second.add_answer(answer_task(2), {"text": "ä\n"})
    first.close()
    shard = Folder(tmp_path).shard("0000")
    assert {line: record["text"] for line, record in shard.answers.items()} == {1: "answer 1", 2: "ä\n", 3: "answer 3"}
    assert first.is_done(answer_task(2), shard)
    assert not first.is_done(answer_task(4), shard)
    assert not first.is_done(Task(2, "q2", "ask", "another", digest="other"), shard)
    assert list(Folder(tmp_path).shard("0001").answers) == [1003]
    assert Folder(tmp_path).shard("0002").names == set()


@pytest.mark.parametrize("torn", [b"", b"{", b'{"id": "q9", "line": 9}', b'{"line": 9, "text": "' + b"x" * 2**17])
def test_a_torn_last_line_is_removed(tmp_path: Path, torn: bytes) -> None:
    folder = Folder(tmp_path)
    folder.add_answer(answer_task(1), {"text": "whole"})
    folder.close()
    (path,) = (tmp_path / "0000").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert list(Folder(tmp_path).shard("0000").answers) == [1]
    assert path.read_bytes() == whole


def test_nothing_is_removed_of_what_somebody_writes(tmp_path: Path) -> None:
    writing = Folder(tmp_path)
    writing.add_answer(answer_task(1), {"text": "whole"})
    (path,) = (tmp_path / "0000").iterdir()
    with path.open("ab") as file:
        file.write(b'{"id": "q2", ')
    content = path.read_bytes()
    assert list(Folder(tmp_path).shard("0000").answers) == [1]
    assert path.read_bytes() == content
    writing.close()


def test_nothing_is_removed_where_locks_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lock", lambda *arguments, **options: None)
    path = tmp_path / FAILED
    path.write_bytes(b'{"line": 1}\n{"li')
    folder = Folder(tmp_path)
    folder.read_failures()
    assert folder.failed == {1}
    assert path.read_bytes() == b'{"line": 1}\n{"li'


def test_failures_of_several_processes(tmp_path: Path) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    first.add_failure(4, "four", ["a", "b", "c"])
    second.read_failures()
    assert second.failed == {4}
    with (tmp_path / FAILED).open("ab") as file:
        file.write(b'{"line": 5')  # a process died here
    second.add_failure(6, "six", ["d"])
    first.read_failures()
    assert first.failed == {4, 6}
    assert [json.loads(line) for line in (tmp_path / FAILED).read_text().splitlines()] == [
        {"id": "four", "line": 4, "error": "c", "attempts": 3, "errors": ["a", "b", "c"]},
        {"id": "six", "line": 6, "error": "d", "attempts": 1, "errors": ["d"]},
    ]
    assert first.forget_failures() == 2
    assert first.failed == set()
    second.add_failure(7, "seven", ["e"])
    first.read_failures()
    assert first.failed == {7}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_are_known_by_their_settings(tmp_path: Path, suffix: str) -> None:
    folder = Folder(tmp_path)
    task = read_task({"id": "cat", "prompt": "a cat " * 500}, 1, Common(tmp_path, suffix=suffix))
    image = Image.effect_noise((256, 256), 50).convert("RGB")  # which does not shrink
    assert not folder.is_done(task, folder.shard("0000"))
    write_picture(tmp_path, task, with_settings(image, task, suffix, {"prompt": task.text}))
    assert folder.is_done(task, folder.shard("0000"))
    assert read_metadata(tmp_path / task.path) == {"batch": task.digest, "id": "cat", "prompt": task.text}


def test_a_picture_of_somebody_else_is_not_taken_for_a_result(tmp_path: Path) -> None:
    task = read_task({"id": "cat", "prompt": "a cat"}, 1, Common(tmp_path))
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    write_picture(tmp_path, task, stream.getvalue())
    with pytest.raises(FileExistsError, match="was not made by this line"):
        Folder(tmp_path).is_done(task, Folder(tmp_path).shard("0000"))
    write_picture(tmp_path, task, b"other")  # as if two processes had the same line
    assert (tmp_path / task.path).read_bytes() == stream.getvalue()


def test_another_model_or_other_settings_are_refused(tmp_path: Path) -> None:
    common = Common(tmp_path, {"steps": 4, "guidance_interval": (0.0, 0.5)}, ".png", {"weights": "abc"})
    check_manifest(tmp_path, common)
    check_manifest(tmp_path, common)
    changed = Common(tmp_path, {"steps": 5, "seed": 3}, ".jpg", {"weights": "abd"})
    with pytest.raises(OptionError) as caught:
        check_manifest(tmp_path, changed)
    for words in ("steps was 4 and is 5", "seed was not given and is 3", "weights was 'abc' and is 'abd'"):
        assert words in str(caught.value)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OptionError, match="is not the manifest of a batch"):
        check_manifest(tmp_path, common)


def test_folders_that_are_taken(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "new")
    assert made.is_dir()
    assert make_folder(made) == made
    (made / ".DS_Store").touch()
    assert make_folder(made) == made
    (made / "thesis.txt").touch()
    with pytest.raises(OutputError, match=r"holds other things \('thesis.txt'\)"):
        make_folder(made)
    (made / "manifest.json").touch()
    assert make_folder(made) == made
    with pytest.raises(OutputError, match="is a file"):
        make_folder(made / "thesis.txt")
    with pytest.raises(OutputError, match="there is no folder"):
        make_folder(tmp_path / "a" / "b")


def test_a_folder_that_another_process_makes_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of the folder before it is made may be out of date by then."""
    target = tmp_path / "out"

    def ask(path: Path, **options: Any) -> str:
        assert kind_of(path, **options) == ""
        target.mkdir()
        return ""

    monkeypatch.setattr(module, "kind_of", ask)
    assert make_folder(target) == target


def test_a_folder_that_another_process_fills_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of names is no snapshot: a file that came after the manifest may be in it, and the manifest not."""
    (tmp_path / "index.json").touch()
    listed = os.listdir

    def list_names(path: Path) -> list[str]:
        names = listed(path)
        (tmp_path / "manifest.json").touch()
        return names

    monkeypatch.setattr(module.os, "listdir", list_names)
    assert make_folder(tmp_path) == tmp_path


def test_files_of_answers_do_not_pile_up(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    before = len(os.listdir("/dev/fd"))
    for shard in range(40):
        folder.add_answer(answer_task(shard * 1000 + 1), {"text": "x"})
    assert len(os.listdir("/dev/fd")) <= before + 8
    folder.add_answer(answer_task(2), {"text": "again"})
    folder.close()
    assert set(folder.shard("0000").answers) == {1, 2}
    assert len(os.listdir("/dev/fd")) == before
