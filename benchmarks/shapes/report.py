"""The table of scores, and the same as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileo_mlx.atomic import atomic_write

from ..common import markdown_table

_HEAD = ("task", "category", "right", "of", "accuracy", "95 % interval", "blank", "prior")


@dataclass(frozen=True)
class Score:
    """How often something was right.

    Attributes:
        task: "draw", "ask" or "edit".
        blank: of questions, how many were answered right when the image was blank.
        prior: of questions, how many have the most frequent answer.
    """

    task: str
    name: str
    right: int
    total: int
    blank: int | None = None
    prior: int | None = None

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)


@dataclass
class ScoreReport:
    """All rows of a model, and what they were measured with."""

    model: str
    settings: dict[str, Any]
    rows: list[Score] = field(default_factory=list)
    seconds: float = 0.0


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval that holds the true rate with 95 % confidence, by Wilson's score."""
    rate, weight = right / total, z * z / total
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def most_frequent(answers: Sequence[str]) -> int:
    """How often the most frequent of some answers occurs."""
    return max(Counter(answers).values(), default=0)


def table(report: ScoreReport) -> Iterator[str]:
    """The lines of the table."""
    yield from markdown_table(_HEAD, map(_cells, report.rows), names=2)


def write_json(report: ScoreReport, path: Path) -> None:
    """Writes all numbers, for programs.

    Raises:
        OutputError: the file exists or can't be written.
    """
    value = {
        "model": report.model,
        "settings": report.settings,
        "seconds": round(report.seconds, 1),
        "rows": [
            {
                "task": row.task,
                "name": row.name,
                "right": row.right,
                "total": row.total,
                "accuracy": round(row.accuracy, 4),
                "interval": [round(bound, 4) for bound in row.interval],
                **({} if row.blank is None else {"blank": round(row.blank / row.total, 4)}),
                **({} if row.prior is None else {"prior": round(row.prior / row.total, 4)}),
            }
            for row in report.rows
        ],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _cells(row: Score) -> tuple[str, ...]:
    low, high = row.interval
    shares = ["" if count is None else f"{count / row.total:.3f}" for count in (row.blank, row.prior)]
    interval = f"{low:.3f} - {high:.3f}"
    return (row.task, row.name, str(row.right), str(row.total), f"{row.accuracy:.3f}", interval, *shares)
