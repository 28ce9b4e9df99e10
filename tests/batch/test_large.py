"""Many lines: they are streamed, and what is held does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from mobileo_mlx.batch.jobs import open_jobs
from mobileo_mlx.batch.tasks import Common

from . import counting

MB = 2**20


def test_memory_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a disk takes far longer than all that is tried here
    counting.write(tmp_path, 1200)
    for computed in (1200, 0):
        tracemalloc.start()
        try:
            assert counting.run(tmp_path) == computed
            assert tracemalloc.get_traced_memory()[1] < 10 * MB
        finally:
            tracemalloc.stop()
    check_results(tmp_path, 1200)


@pytest.mark.slow
def test_a_million_lines(tmp_path: Path) -> None:
    """While ids are compared 16 bytes are held for each line, and at last a copy of half of that."""
    program = [sys.executable, counting.__file__, str(tmp_path), "1000000"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["memory"] < 100 * MB
    check_results(tmp_path, 1_000_000)


def check_results(folder: Path, count: int) -> None:
    lines = 0
    with (folder / "out" / "results.jsonl").open() as file:
        for lines, line in enumerate(file, start=1):
            assert json.loads(line)["id"] == f"item-{lines}"
    assert lines == count


def test_an_id_that_is_repeated_far_away_is_found(tmp_path: Path) -> None:
    counting.write(tmp_path, 1200)
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"id": "ITEM-2", "prompt": "x"}\n')
    jobs, _ = open_jobs(tmp_path / "jobs.jsonl", tmp_path / "out", Common(tmp_path))
    (found,) = jobs.check()
    assert (found.line, found.problem) == (1201, "has the id, or name of a file, of line 2")
