"""What a model is asked about pictures, as lines for `mobileo_mlx.batch`, and what it has answered.

Each run of a batch has a folder of its own in the build's folder, `answers-1` and so on, with the lines that none
before it has answered. So pictures may be added, removed and renamed between two builds: an answer belongs to the
pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..batch.folder import MANIFEST, Folder
from ..errors import OptionError, OutputError
from ..files import is_file, parse_json, read_json
from ..training.quadruplets import DataError
from .pictures import Picture

_ASKED = "asked.json"


@dataclass
class Answers:
    """What is known.

    Attributes:
        texts: answers by the key of picture and question, see `key`.
        errors: of lines that were given up, by the same.
    """

    texts: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def key(picture: Picture, question: str) -> str:
    """By what an answer is found: a digest of the pixels and one of the question."""
    return f"{picture.digest[:32]}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"


def read_answers(work: Path) -> Answers:
    """All answers in a build's folder.

    Raises:
        DataError: two runs were of different models, or with other settings.
        OutputError: the folder can't be read.
    """
    found = Answers()
    settings: Any = None
    for run in _runs(work):
        mine = read_json(run / MANIFEST, error=DataError, remedy=f"remove '{run}'").get("settings")
        if settings not in (None, mine):
            raise DataError(
                f"'{work}' holds answers of two models, or with two settings; remove '{run}', or begin a new --out."
            )
        settings = mine
        folder = Folder(run)
        for shard in sorted(path.name for path in run.iterdir() if path.name.isdecimal()):
            for record in folder.shard(shard).answers.values():
                found.texts[str(record.get("id"))] = " ".join(str(record.get("text", "")).split())
        for record in folder.failures():
            found.errors[str(record.get("id"))] = str(record.get("error", ""))
    return found


def check_asked(work: Path, settings: Mapping[str, Any]) -> None:
    """Notes by which options a model was chosen, or compares with what an earlier build has noted.

    Raises:
        OptionError: they were others.
        OutputError: the folder can't be written.
    """
    path, now = work / _ASKED, parse_json(json.dumps(settings, default=str))
    if is_file(path, error=OutputError):
        before = read_json(path, error=OptionError, remedy=f"remove '{work}'")
        if differ := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
            raise OptionError(
                f"'{work}' holds answers with another --{differ[0].replace('_', '-')} "
                f"({before.get(differ[0], 'none')}); give the same, remove the folder, or begin a new --out."
            )
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(now), encoding="utf-8")


def lines_for(
    asked: Iterable[tuple[Picture, str]], folder: Path, known: Answers, *, retry_failed: bool
) -> list[dict[str, str]]:
    """The lines of what has no answer yet.

    Args:
        asked: pictures and questions.
        folder: that the pictures are in.
        known: answers.
        retry_failed: whether those that were given up are asked again.
    """
    lines: dict[str, dict[str, str]] = {}
    for picture, question in asked:
        name = key(picture, question)
        if name in known.texts or (name in known.errors and not retry_failed):
            continue
        line = {"id": name, "task": "ask", "question": question, "image": str(folder / picture.path)}
        lines.setdefault(name, line)
    return list(lines.values())


def next_run(work: Path) -> Path:
    """The folder of the next run."""
    return work / f"answers-{len(_runs(work)) + 1}"


def _runs(work: Path) -> list[Path]:
    """Those that were begun, in order."""
    runs: list[Path] = []
    while is_file((run := work / f"answers-{len(runs) + 1}") / MANIFEST, error=OutputError):
        runs.append(run)
    return runs
