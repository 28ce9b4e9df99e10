"""A thousand tasks in one process: memory, open files and threads stay as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .places import environment

TASKS, EVERY = 1000, 100
WARM = 300  # tasks until all kinds have run, and caches are filled
MEMORY = 32_000_000  # bytes by which what a process holds goes up and down


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process holds is read from Linux's /proc")
def test_a_thousand_tasks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("soaking.py")), str(TASKS), str(EVERY)],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    held = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    warm, last = held[WARM // EVERY - 1], held[-1]
    assert last["tasks"] == TASKS
    assert 0 < last["refused"] < TASKS
    assert (last["files"], last["threads"]) == (warm["files"], warm["threads"])
    assert last["resident"] <= warm["resident"] + MEMORY
    assert last["active"] <= warm["active"] + 1_000_000
