"""Does very many tasks with an engine that answers at once, and says what that took.

Bytes, and microseconds of processor time for each line, in a first run (lines are checked, and done) and in a second
one (they are found done).

python counting.py FOLDER COUNT
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from mobileo_mlx.batch.engine import Done, Outcome, Source
from mobileo_mlx.batch.folder import Folder
from mobileo_mlx.batch.jobs import keep_index, open_jobs
from mobileo_mlx.batch.runner import Run
from mobileo_mlx.batch.tasks import Common


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


def write(folder: Path, count: int) -> None:
    """A jobs file, and the image that it names."""
    (folder / "a.png").touch()
    (folder / "out").mkdir()
    with (folder / "jobs.jsonl").open("w") as file:
        for i in range(1, count + 1):
            line = {"id": f"item-{i}", "task": "ask", "image": "a.png", "question": f"Is {i} shown in this picture?"}
            file.write(json.dumps(line) + "\n")


def run(folder: Path) -> int:
    """Checks and does all tasks; how many were not done yet."""
    jobs, known = open_jobs(folder / "jobs.jsonl", folder / "out", Common(folder))
    if not known:
        assert list(jobs.check()) == []
        keep_index(jobs, folder / "out", good=True)
    engine = Instant()
    for _ in Run(jobs, Folder(folder / "out")).events(engine):
        pass
    jobs.close()
    return engine.computed


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a disk takes far longer than all that is tried here
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    write(place, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.process_time()]
    for left in (count, 0):
        assert run(place) == left
        times.append(time.process_time())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    first, second = ((end - begin) / count * 1e6 for begin, end in pairwise(times))
    memory = grown if sys.platform == "darwin" else grown * 1024
    print(json.dumps({"memory": memory, "first": round(first, 1), "second": round(second, 1)}))
