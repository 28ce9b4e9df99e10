"""Ctrl-C: status 130, finished images stay and are whole, nothing else is left behind."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from .conftest import COMMAND


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.1])
def test_finished_images_stay(tiny_model: Path, work: Path, environment: dict[str, str], delay: float) -> None:
    process = subprocess.Popen(
        [str(COMMAND), "generate", "a cat", "-m", str(tiny_model), "-n", "50", "--seed", "1", "-o", "{seed}.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    printed = [process.stdout.readline(), process.stdout.readline()]
    time.sleep(delay)  # so that different stages of the next image are interrupted
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mobileo-mlx: interrupted"
    assert "Traceback" not in err
    names = [line.strip() for line in [*printed, *out.splitlines()]]
    assert names[:2] == ["1.png", "2.png"]
    # The last image may have been saved just before its name could be printed.
    assert {path.name for path in work.iterdir()} - {f"{len(names) + 1}.png"} == set(names)
    for path in work.iterdir():
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("arguments", [["convert", "{model}", "new"], ["random-model", "new"]])
def test_no_half_written_folder(
    tiny_model: Path, work: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    command = [str(COMMAND), *(argument.format(model=tiny_model) for argument in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work, env=environment)
    limit = time.monotonic() + 60
    while not any(work.iterdir()) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    left = [path.name for path in work.iterdir()]
    # On a quick machine the folder may be finished by now.
    if left != ["new"]:
        assert (process.returncode, left, err) == (130, [], b"mobileo-mlx: interrupted\n")
