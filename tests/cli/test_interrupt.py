"""Ctrl-C and what ends a process otherwise: finished images stay and are whole, nothing else is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


ENDS = {
    signal.SIGINT: (130, b"mobileo-mlx: interrupted\n"),
    signal.SIGTERM: (143, b"mobileo-mlx: ended by SIGTERM\n"),
    signal.SIGHUP: (129, b"mobileo-mlx: ended by SIGHUP\n"),
}


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("arguments", [["convert", "{model}", "new"], ["random-model", "new"]])
def test_no_half_written_folder(
    tiny_model: Path, work: Path, environment: dict[str, str], arguments: list[str], number: signal.Signals
) -> None:
    command = [str(COMMAND), *(argument.format(model=tiny_model) for argument in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work, env=environment)
    limit = time.monotonic() + 60
    while not any(work.iterdir()) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    left = [path.name for path in work.iterdir()]
    # On a quick machine the folder may be finished by now.
    if left != ["new"]:
        status, message = ENDS[number]
        assert (process.returncode, left, err) == (status, [], message)


# Runs the command while SIGTERM comes, and comes again when what is unfinished is removed.
TWICE = """
import os, shutil, signal, sys
from mobileo_cli.main import main
from mobileo_mlx.checkpoints import random_model

def write(folder, seed):
    from mobileo_mlx.atomic import atomic_folder
    with atomic_folder(folder):
        os.kill(os.getpid(), signal.{first})

remove = shutil.rmtree
def removed(*arguments, **options):
    os.kill(os.getpid(), signal.{second})
    print("here", file=sys.stderr)
    remove(*arguments, **options)

random_model.write_random_model = write
shutil.rmtree = removed
sys.argv = ["mobileo-mlx", "random-model", "new"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("first", "second", "status", "cleaned"),
    [
        ("SIGTERM", "SIGHUP", 143, True),  # as a shutdown sends them
        ("SIGHUP", "SIGHUP", 129, True),
        ("SIGINT", "SIGINT", 130, False),  # somebody is impatient
    ],
)
def test_a_second_signal(work: Path, first: str, second: str, status: int, cleaned: bool) -> None:
    code = TWICE.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert ("here" in done.stderr, list(work.iterdir()) == []) == (cleaned, cleaned)


# A callback in which Python can't raise anything is interrupted.
LOST = """
import gc, os, signal, sys, time
from mobileo_cli import info
from mobileo_cli.main import main
from mobileo_mlx.checkpoints import convert

class Watched:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        sum(range(100))

def describe(*arguments, **options):
    Watched()
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        pass
    raise KeyError("it was lost")

convert.describe = describe
sys.argv = ["mobileo-mlx", "info", "tiny"]
sys.exit(main())
"""


@pytest.mark.parametrize("number", ENDS)
def test_an_interruption_is_not_lost(work: Path, number: signal.Signals) -> None:
    code = LOST.format(name=number.name)
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == ENDS[number]


def test_nohup_goes_on(tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    """A process that was told to ignore that its terminal goes away does so."""
    process = subprocess.Popen(
        ["nohup", str(COMMAND), "generate", "a cat", "-m", str(tiny_model), "-n", "8", "-o", "{seed}.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=work,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert (process.returncode, len(list(work.iterdir()))) == (0, 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_an_image_is_drawn(
    tiny_model: Path, work: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [str(COMMAND), "generate", "a cat", "-m", str(tiny_model), "-n", "50", "-o", "{index}.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work,
        env=environment,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines(keepends=True)[-1]) == ENDS[number]
    assert all(not name.startswith(".") for name in os.listdir(work))
