"""Many lines: they are streamed, and what is held does not grow with them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobileo_mlx.batch.engine import Done, Outcome, Source
from mobileo_mlx.batch.folder import Folder
from mobileo_mlx.batch.jobs import keep_index, open_jobs
from mobileo_mlx.batch.runner import Run
from mobileo_mlx.batch.tasks import Common

MB = 2**20


class Instant:
    """An engine that answers at once."""

    def __init__(self) -> None:
        self.computed = 0

    def identity(self) -> dict[str, Any]:
        return {}

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        while (chunk := source.take()) is not None:
            for task in chunk:
                self.computed += 1
                yield Done(task.line, answer={"text": "yes", "finish_reason": "stop"})


def write(path: Path, count: int) -> None:
    with path.open("w") as file:
        for i in range(1, count + 1):
            line = {"id": f"item-{i}", "task": "ask", "image": "a.png", "question": f"Is {i} shown in this picture?"}
            file.write(json.dumps(line) + "\n")


def run(folder: Path) -> tuple[Instant, int]:
    """Checks and does all tasks, and returns the engine and the bytes that were held at most."""
    engine = Instant()
    tracemalloc.start()
    try:
        jobs, known = open_jobs(folder / "jobs.jsonl", folder / "out", Common(folder))
        if not known:
            assert list(jobs.check()) == []
            keep_index(jobs, folder / "out", good=True)
        for _ in Run(jobs, Folder(folder / "out")).events(engine):
            pass
        jobs.close()
        return engine, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a disk takes far longer than all that is tried here


@pytest.mark.parametrize("count", [3_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_lines(tmp_path: Path, count: int) -> None:
    """But for 16 bytes a line while ids are compared, and a hundred for each thousand lines."""
    (tmp_path / "out").mkdir()
    (tmp_path / "a.png").touch()
    write(tmp_path / "jobs.jsonl", count)
    engine, peak = run(tmp_path)
    assert engine.computed == count
    assert peak < 10 * MB + 40 * count  # sorting holds a copy
    engine, peak = run(tmp_path)
    assert engine.computed == 0
    assert peak < 10 * MB
    lines = 0
    with (tmp_path / "out" / "results.jsonl").open() as file:
        for lines, line in enumerate(file, start=1):
            assert json.loads(line)["id"] == f"item-{lines}"
    assert lines == count


def test_an_id_that_is_repeated_far_away_is_found(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.png").touch()
    write(tmp_path / "jobs.jsonl", 3_000)
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"id": "ITEM-2", "prompt": "x"}\n')
    jobs, _ = open_jobs(tmp_path / "jobs.jsonl", tmp_path / "out", Common(tmp_path))
    (found,) = jobs.check()
    assert (found.line, found.problem) == (3_001, "has the id, or name of a file, of line 2")
