"""What a finished run has made, in one file, in the order of the jobs file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..image_settings import read_metadata
from .folder import Folder, Shard
from .jobs import Jobs, LineError, entry_of, id_of
from .tasks import DRAWING, SHARD, name_of, picture_path, shard_of

RESULTS = "results.jsonl"


def write_results(jobs: Jobs, folder: Folder) -> None:
    """Writes a line for each task: "id", "line" and "task" with "picture" (a path in the folder), the text of an answer
    or the "error" of a line that was given up. A picture that is the best of several has "seed", "score" and "passes".

    Raises:
        OutputError: the disk is full, or the folder can't be read.
    """
    failures = {record["line"]: record["error"] for record in folder.failures()}
    with atomic_write(folder.path / RESULTS, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as out:
        for first in range(1, jobs.index.lines + 1, SHARD):
            shard = folder.shard(shard_of(first))
            for record in _records(jobs, first, shard, failures):
                if (record.pop("best_of", None) or 1) > 1:
                    record |= _judged(folder.path / record["picture"])
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
                best_of = entry.get("best_of", jobs.common.options.get("best_of"))
                yield {"id": name, "line": line, "task": task, "picture": path, "best_of": best_of}


def _judged(picture: Path) -> dict[str, Any]:
    """What the model said of the candidate that was kept."""
    settings = read_metadata(picture)
    said = settings.get("best_of")
    candidates = said["candidates"] if isinstance(said, dict) else []  # a server may write no settings
    return next((one for one in candidates if one["seed"] == settings["seed"]), {})
