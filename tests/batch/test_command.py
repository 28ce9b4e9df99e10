"""`mobileo-mlx batch` as its users run it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mobileo_cli.main import main
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.atomic import TEMPORARY_PREFIX
from mobileo_mlx.batch import claims
from mobileo_mlx.batch.runner import ATTEMPTS
from mobileo_mlx.image_settings import read_metadata

from .conftest import Place, prompts
from .faking import FakeModel

Command = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def command(place: Place, fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process, with the fake model: status, standard output, standard error."""

    def run(*options: object, jobs: object = None, out: object = None) -> tuple[int, str, str]:
        words = ["batch", str(jobs or place.jobs), "--out", str(out or place.out), *map(str, options)]
        return main(words), *capsys.readouterr()

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_all_tasks_are_what_plain_calls_give(place: Place, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the bundled model: the same pixels, and the same words."""
    place.write(
        [
            {"id": "star", "prompt": "a red star", "steps": 3, "seed": 5},
            {"prompt": "a blue square", "size": "96x64"},
            {"task": "edit", "id": "edited", "image": str(photo), "instruction": "make it red", "strength": 0.9},
            {"task": "ask", "id": "asked", "image": [str(photo), str(photo)], "question": "what is it?"},
            {"task": "caption", "id": "told", "image": str(photo)},
        ]
    )
    assert (
        main(["batch", str(place.jobs), "--out", str(place.out), "-m", "tiny", "--steps", "2", "--max-tokens", "5"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith(f"{place.out}/results.jsonl: 5 done, 5 of them now in ")
    records = {record["id"]: record for record in place.results()}
    assert list(records) == ["star", "2", "edited", "asked", "told"]
    model = MobileO.load("tiny")
    settings = read_metadata(place.out / records["2"]["picture"])
    assert (settings["seed"], settings["width"], settings["height"], settings["steps"]) == (settings["seed"], 96, 64, 2)
    seed = read_metadata(place.out / records["edited"]["picture"])["seed"]
    expected = {
        "star": model.generate("a red star", steps=3, seed=5),
        "2": model.generate("a blue square", steps=2, width=96, height=64, seed=settings["seed"]),
        "edited": model.edit(photo, "make it red", steps=2, strength=0.9, seed=seed),
    }
    for name, result in expected.items():
        found = place.out / records[name]["picture"]
        assert np.array_equal(pixels(found), np.asarray(result.images[0]))
    assert read_metadata(place.out / "0000" / "edited.png")["image"] == photo.name
    answer = model.ask([photo, photo], "what is it?", max_tokens=5)
    assert (records["asked"]["text"], records["asked"]["finish_reason"]) == (answer.text, answer.finish_reason)
    assert records["told"]["text"] == model.ask(photo, "Describe the image.", max_tokens=5).text


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_formats(place: Place, command: Command, kind: str) -> None:
    place.write(prompts(3))
    assert command("--format", kind)[0] == 0
    assert sorted(os.listdir(place.out / "0000")) == [f"p{i}.{kind}" for i in (1, 2, 3)]
    settings = read_metadata(place.out / "0000" / f"p2.{kind}")
    assert (settings["prompt"], settings["id"]) == ("prompt 2", "p2")
    assert command("--format", kind)[0] == 0
    assert len(place.computed()) == 3


def test_pictures_can_be_made_again_from_their_settings(place: Place, tmp_path: Path) -> None:
    place.write([{"id": "a", "prompt": "a red star", "steps": 2}])
    assert main(["batch", str(place.jobs), "--out", str(place.out), "-m", "tiny"]) == 0
    again = tmp_path / "again.png"
    assert main(["generate", "--from-image", str(place.out / "0000" / "a.png"), "-o", str(again)]) == 0
    assert np.array_equal(pixels(again), pixels(place.out / "0000" / "a.png"))


def test_a_second_run_does_nothing_and_added_lines_are_done(place: Place, command: Command) -> None:
    place.write(prompts(30))
    assert command()[0] == 0
    status, out, _ = command("--json")
    report = json.loads(out)
    assert (status, report["done"], report["computed"], report["failed"]) == (0, 30, 0, 0)
    place.write([*prompts(30), {"id": "new", "prompt": "new"}])
    assert command()[1].startswith(f"{place.out}/results.jsonl: 31 done, 1 of them now")
    assert place.computed() == [f"prompt {i}" for i in range(1, 31)] + ["new"]
    assert [record["id"] for record in place.results()] == [*(f"p{i}" for i in range(1, 31)), "new"]


def test_what_is_removed_is_made_again(place: Place, command: Command) -> None:
    place.write(prompts(30))
    command()
    before = (place.out / "0000" / "p7.png").read_bytes()
    (place.out / "0000" / "p7.png").unlink()
    assert command()[0] == 0
    assert (place.out / "0000" / "p7.png").read_bytes() == before
    assert len(place.computed()) == 31


def test_changed_settings_are_refused(place: Place, command: Command) -> None:
    place.write(prompts(3))
    command("--steps", 4)
    for options, words in (
        (["--steps", 5], "steps was 4 and is 5"),
        (["--steps", 4, "--seed", 1], "seed was not given and is 1"),
    ):
        status, _, err = command(*options)
        assert status == 2
        assert f"'{place.out}' was begun with other settings: {words}; give the same, or a new --out." in err
    place.write([{"id": "p1", "prompt": "other"}, *prompts(3)[1:]])
    status, _, err = command("--steps", 4)
    assert status == 2
    assert "among lines 1 to 3 one has changed" in err
    assert len(place.computed()) == 3


def test_bad_lines_are_named_before_anything_is_computed(place: Place, command: Command) -> None:
    place.write([*prompts(2), "{no", {"id": "p1", "prompt": "again"}, *({"prompt": ""} for _ in range(30))])
    status, out, err = command()
    lines = err.splitlines()
    assert (status, out, place.computed(), place.out.exists()) == (2, "", [], False)
    assert lines[0].startswith(f"'{place.jobs}', line 3 is not JSON")
    assert len(lines) == 21
    assert "has 32 bad lines, of which the first 20 are named; correct them" in lines[-1]


def test_bad_lines_can_be_skipped(place: Place, command: Command) -> None:
    place.write([*prompts(2), "{no", {"id": "p1", "prompt": "again"}, {"id": "late", "prompt": "late"}])
    for _ in range(2):
        status, _, err = command("--skip-bad-lines")
        assert status == 1
        assert "line 3 is not JSON" in err
        assert [(record["line"], record["id"]) for record in place.failures()] == [(3, "3"), (4, "p1")]
        assert place.computed() == ["prompt 1", "prompt 2", "late"]
    assert place.results()[3] == {"id": "p1", "line": 4, "error": "has the id, or name of a file, of line 1"}
    status, _, err = command()
    assert status == 2  # they are still bad
    assert "has 2 bad lines; correct them, or leave them out" in err


def test_lines_that_fail(place: Place, command: Command) -> None:
    place.write(
        [*prompts(2), {"id": "x", "prompt": "fail"}, {"id": "y", "prompt": "bug"}, {"id": "z", "prompt": "nan"}]
    )
    status, out, err = command()
    assert status == 1
    assert "2 done, 3 failed (see failed.jsonl)" in out
    assert "line 3 failed: 'fail' is damaged." in err
    assert {record["id"]: (record["attempts"], record["error"]) for record in place.failures()} == {
        "x": (ATTEMPTS, "'fail' is damaged."),
        "y": (ATTEMPTS, "RuntimeError: a bug"),
        "z": (ATTEMPTS, "dit has values that are not finite."),
    }
    assert command()[0] == 1
    assert command("--retry-failed")[0] == 1
    assert len(place.failures()) == 3


def test_a_broken_image_is_the_lines_own_fault(place: Place, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:100])
    ask = {"task": "ask", "question": "what?", "max_tokens": 2}
    place.write([{**ask, "image": "broken.png"}, {**ask, "image": str(photo)}])
    arguments = ["batch", str(place.jobs), "--out", str(place.out), "-m", "tiny"]
    assert main(arguments) == 1
    (failure,) = place.failures()
    assert "broken.png' is" in failure["error"]
    (tmp_path / "broken.png").write_bytes(photo.read_bytes())
    assert main([*arguments, "--retry-failed"]) == 0
    assert [record["line"] for record in place.results()] == [1, 2]


def test_a_line_that_kills_the_process_is_given_up(place: Place) -> None:
    place.write([*prompts(5), {"id": "x", "prompt": "die"}, *prompts(8)[5:]])
    for _ in range(ATTEMPTS):
        assert place.run().returncode == -signal.SIGKILL
    done = place.run()
    assert done.returncode == 1
    assert "line 6 failed: the process that worked on it has ended 3 times" in done.stderr
    assert [record["id"] for record in place.failures()] == ["x"]
    assert place.computed() == [f"prompt {i}" for i in range(1, 9)]
    assert place.run("--retry-failed").returncode == -signal.SIGKILL


def test_a_picture_of_the_users_is_never_replaced(place: Place, command: Command) -> None:
    place.write(prompts(3))
    command()
    Image.new("RGB", (4, 4)).save(place.out / "0000" / "p2.png")
    mine = (place.out / "0000" / "p2.png").read_bytes()
    status, _, err = command()
    assert status == 1
    assert "'0000/p2.png' is there already, and was not made by this line; move it away" in err
    assert (place.out / "0000" / "p2.png").read_bytes() == mine
    (place.out / "0000" / "p2.png").unlink()
    assert command("--retry-failed")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(place: Place, number: int) -> None:
    place.write(prompts(60, "slow"))
    process = place.start("--progress", "json")
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line).get("done", 0) >= 5:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert json.loads(err.splitlines()[-1])["event"] == "interrupted"
    begun = len(place.computed())
    assert 5 <= begun < 60
    assert list((place.out / claims.FOLDER).iterdir()) == []
    assert place.run().returncode == 0
    assert set(place.computed()) == {f"slow {i}" for i in range(1, 61)}
    assert len(place.computed()) <= 61  # the one that was being computed
    assert list(place.out.rglob(f"*{TEMPORARY_PREFIX}*")) == []


def test_progress_as_json(place: Place) -> None:
    place.write([*prompts(3), {"id": "x", "prompt": "fail"}])
    events = [json.loads(line) for line in place.run("--progress", "json").stderr.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    assert [step["done"] for step in steps][:3] == [1, 2, 3]
    last = steps[-1]
    assert (last["done"], last["total"], last["failed"], last["left"], last["label"]) == (3, 4, 1, 0, "batch")
    assert last["seconds_per_task"] > 0
    assert last["seconds_left"] == 0
    (note,) = [event["message"] for event in events if event["event"] == "note"]
    assert note.startswith("line 4 failed: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps 0 is not possible"),
        (["--size", "64"], "--size 64: write WIDTHxHEIGHT"),
        (["--seed", "-1"], "seed -1 is not possible"),
        (["--format", "gif"], "--format gif: choose png, jpg or webp."),
        (["--api-key", "k"], "--api-key is that of servers: give --servers, too."),
        (["--servers", "ftp://x"], "--servers: write addresses such as http://mac.local:8642"),
        (["--servers", "x:1", "--model", "tiny"], "--model is a matter of the servers; leave it out."),
    ],
)
def test_options_that_are_refused(place: Place, command: Command, options: list[str], words: str) -> None:
    place.write(prompts(1))
    status, out, err = command(*options)
    assert (status, out) == (2, "")
    assert words in err
    assert not place.out.exists()


def test_files_that_are_refused(place: Place, command: Command, tmp_path: Path) -> None:
    place.write(prompts(1))
    for jobs, words in (
        ("-", "a run that can go on needs a file"),
        (tmp_path / "no", "can't be read"),
        (tmp_path, "not a regular"),
    ):
        status, _, err = command(jobs=jobs)
        assert status == 2
        assert words in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    status, _, err = command(out=tmp_path / "full")
    assert status == 2
    assert "holds other things ('thesis.txt')" in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr!r}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("task", ["generate", "ask"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    place: Place, command: Command, small_disk: Path, task: str
) -> None:
    count = 200
    lines: list[dict[str, Any]] = prompts(count)
    if task == "ask":
        Image.new("RGB", (4, 4)).save(place.folder / "a.png")
        lines = [
            {"task": "ask", "image": "a.png", "question": f"prompt {i} " + "x" * 2000} for i in range(1, count + 1)
        ]
    place.write(lines)
    out = small_disk / "out"
    status, said, err = command(out=out)
    assert (status, said) == (2, "")
    assert "the disk is full" in err.splitlines()[-1]
    assert "Traceback" not in err
    begun = len(place.computed())
    assert 10 < begun < count
    assert list(out.rglob(f"*{TEMPORARY_PREFIX}*")) == []
    for path in out.glob("*/answers-*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert command(out=out)[0] == 0
    assert len(place.computed()) <= count + 1  # the one that could not be written
    assert len((out / "results.jsonl").read_text().splitlines()) == count


def test_a_folder_that_can_not_be_written(place: Place, command: Command, small_disk: Path) -> None:
    place.write(prompts(2))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["mount", "-o", "remount,rw", str(small_disk)], check=True)
        status, _, err = command(out=small_disk / "out")
    assert status == 2
    assert "can't be written (Read-only file system)" in err
