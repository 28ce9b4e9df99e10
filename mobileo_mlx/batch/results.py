"""What a finished run has made, in one file, in the order of the jobs file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..atomic import atomic_write
from .folder import Folder, Shard
from .jobs import Jobs, LineError, entry_of, id_of
from .tasks import DRAWING, SHARD, name_of, picture_path, shard_of

RESULTS = "results.jsonl"


def write_results(jobs: Jobs, folder: Folder) -> None:
    """Writes a line for each task: "id", "line" and "task" with "picture" (a path in the folder), the text of an answer
    or the "error" of a line that was given up.

    Raises:
        OutputError: the disk is full, or the folder can't be read.
    """
    failures = {record["line"]: record["error"] for record in folder.failures()}
    with atomic_write(folder.path / RESULTS, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as out:
        for first in range(1, jobs.index.lines + 1, SHARD):
            shard = folder.shard(shard_of(first))
            for record in _records(jobs, first, shard, failures):
                out.write(json.dumps(record) + "\n")


def _records(jobs: Jobs, first: int, shard: Shard, failures: dict[int, str]) -> Iterator[dict[str, Any]]:
    for line, text in jobs.lines(first, SHARD):
        if line in failures:
            yield {"id": id_of(text, line), "line": line, "error": failures[line]}
        elif line in shard.answers:
            yield {key: value for key, value in shard.answers[line].items() if key != "digest"}
        else:
            try:
                entry = entry_of(text)
                name, task = name_of(entry, line), entry.get("task", "generate")
            except (LineError, AttributeError):  # a bad line, which another process wants to try again
                continue
            path = picture_path(name, line, jobs.common.suffix) if task in DRAWING else ""
            if path.rpartition("/")[2] in shard.names:
                yield {"id": name, "line": line, "task": task, "picture": path}
