"""Input that has no end, and names that wait for somebody: refused in a sentence, and not waited for."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from .conftest import COMMAND

pytestmark = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no endless file")


@pytest.mark.parametrize(
    "line",
    [
        "generate -",
        "edit photo.png -",
        "edit - red",
        "ask - What?",
        "chat",
        "generate --prompt-file /dev/zero",
        "generate --prompt-file fifo",
        "generate --from-image fifo",
        "edit fifo red",
        "ask fifo What?",
        "finetune --dry-run --quadruplets /dev/zero",
        "finetune --dry-run --quadruplets fifo",
    ],
)
def test_nothing_is_waited_for(line: str, photo: Path, work: Path, environment: dict[str, str]) -> None:
    os.mkfifo(work / "fifo")
    (work / "photo.png").write_bytes(photo.read_bytes())
    with open("/dev/zero") as endless:
        done = subprocess.run(
            [str(COMMAND), *line.split(), "--model", "tiny"],
            stdin=endless,
            capture_output=True,
            text=True,
            cwd=work,
            env=environment,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)),
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("mobileo-mlx: error: ")
    assert "Traceback" not in done.stderr


def test_a_pipe_that_a_shell_makes(work: Path, environment: dict[str, str]) -> None:
    line = f"exec '{COMMAND}' generate --model tiny --steps 1 --output a.png --prompt-file <(echo a red star)"
    done = subprocess.run(["bash", "-c", line], cwd=work, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a.png\n"), done.stderr
