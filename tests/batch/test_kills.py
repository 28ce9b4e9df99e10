"""Processes that are killed at any moment, and several at once: every task has its result, and each is whole."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.atomic import TEMPORARY_PREFIX
from mobileo_mlx.batch import claims

from .conftest import Place, prompts

COUNT = 120


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    """Pictures and answers that take some time each."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    drawn = prompts(COUNT // 2, "slow")
    asked = [{"task": "ask", "id": f"q{i}", "image": "a.png", "question": f"slow q{i}"} for i in range(COUNT // 2)]
    return [line for pair in zip(drawn, asked, strict=True) for line in pair]


def check(place: Place, lines: list[dict[str, Any]], expected: Place) -> None:
    """All results are there, and are those of a run that nobody disturbed."""
    assert expected.run().returncode == 0
    assert [record["id"] for record in place.results()] == [line["id"] for line in lines]
    assert place.results() == expected.results()
    for path in sorted(expected.out.rglob("*.png")):
        assert (place.out / path.relative_to(expected.out)).read_bytes() == path.read_bytes()
    # What was being written when a process died lies beside them, under a name with a dot, until the next run.
    assert len([path for path in place.out.rglob("*.png") if not path.name.startswith(".")]) == COUNT // 2
    assert list((place.out / claims.FOLDER).iterdir()) == []
    assert not (place.out / "failed.jsonl").exists()


def undisturbed(place: Place, lines: list[dict[str, Any]]) -> Place:
    """The same tasks in another folder."""
    folder = place.folder / "undisturbed"
    folder.mkdir()
    (folder / "a.png").write_bytes((place.folder / "a.png").read_bytes())
    other = Place(folder)
    other.write(lines)
    return other


def begun(process: subprocess.Popen[str], steps: int) -> None:
    """Waits until a process has finished some tasks, or has ended."""
    assert process.stderr is not None
    for _, line in zip(range(steps), filter(lambda line: '"step"' in line, process.stderr), strict=False):
        assert line


@pytest.mark.parametrize("seed", [1, pytest.param(range(2, 12), marks=pytest.mark.slow)])
def test_killed_again_and_again(place: Place, lines: list[dict[str, Any]], seed: Any) -> None:
    """At least one task is finished between two kills, so no line is held to have killed its process three times."""
    place.write(lines)
    for each in [seed] if isinstance(seed, int) else seed:
        chance = random.Random(each)
        kills = 0
        while True:
            process = place.start("--progress", "json")
            begun(process, chance.randint(2, 40))
            time.sleep(chance.uniform(0, 0.03))  # at any moment of a task
            process.kill()
            process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
        assert kills >= 3
        assert set(place.computed()) == {line.get("prompt") or line["question"] for line in lines}
        assert len(place.computed()) <= COUNT + kills  # those that were being kept when the process died
        if isinstance(seed, int):
            check(place, lines, undisturbed(place, lines))
            assert list(place.out.rglob(f"*{TEMPORARY_PREFIX}*")) == []
        else:
            subprocess.run(["rm", "-r", str(place.out), str(place.log)], check=True)


def test_two_processes_share_a_folder(place: Place, lines: list[dict[str, Any]]) -> None:
    place.write(lines)
    processes = [place.start(), place.start()]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(place.computed()) == sorted(line.get("prompt") or line["question"] for line in lines)  # each once
    check(place, lines, undisturbed(place, lines))
    assert len(list(place.out.glob("0000/answers-*.jsonl"))) == 2  # both have worked


def test_what_a_process_held_when_it_died_is_done_by_the_other(place: Place, lines: list[dict[str, Any]]) -> None:
    place.write(lines)
    dying, other = place.start("--progress", "json"), place.start()
    begun(dying, 5)
    dying.kill()
    dying.communicate()
    _, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    assert len(place.computed()) <= COUNT + 1
    check(place, lines, undisturbed(place, lines))
