"""Several processes at once: nothing that was drawn or downloaded is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from .places import Place, environment

PROCESSES = 4
IMAGES = 3  # of each


@pytest.mark.slow
@pytest.mark.parametrize("previews", [False, True])
def test_drawings_of_one_name(tiny_model: Path, tmp_path: Path, previews: bool) -> None:
    """Each process gets names of its own, and all of them are whole."""
    folder = tmp_path / "work"
    folder.mkdir()
    arguments = ["generate", "a cat", "-m", str(tiny_model), "--steps", "1", "--size", "64x64", "-n", str(IMAGES)]
    more = ["--previews", "previews"] if previews else []
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MAIN, *arguments, "--seed", "7", "-o", "same", *more],
            cwd=folder,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, [err for _, err in ended]
    names = [line for out, _ in ended for line in out.splitlines()]
    assert len(set(names)) == len(names) == PROCESSES * IMAGES
    expected = {"same.png", *(f"same-{i}.png" for i in range(1, PROCESSES * IMAGES))}
    assert {path.name for path in folder.iterdir()} - {"previews"} == expected
    for name in names:
        with Image.open(folder / name) as image:
            image.load()
    if previews:  # a step and a contact sheet of each image
        assert len(list((folder / "previews").iterdir())) == PROCESSES * IMAGES * 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "fuse", "random-model"])
def test_one_folder(place: Callable[..., Place], tmp_path: Path, command: str) -> None:
    """One process writes it, the others are told so, and nothing unfinished stays."""
    expected, here = place(command), place(command)
    assert expected.run().returncode == 0
    here.folder.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MAIN, *here.arguments],
            cwd=here.folder,
            env=here.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0] + [2] * (PROCESSES - 1), errors
    assert sum("exists already" in error for error in errors) == PROCESSES - 1
    assert here.files() == expected.files()
    assert here.unfinished() == []


_MAIN = "import sys; from mobileo_cli.main import main; sys.exit(main())"
