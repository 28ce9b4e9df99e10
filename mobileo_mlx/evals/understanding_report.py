"""The results of the benchmarks of visual questions beside the paper's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .understanding import BENCHMARKS, Benchmark, Metric
from .understanding_run import Result

_Z = 1.959964  # of 95 %, two-sided


@dataclass(frozen=True)
class Row:
    """A number of the table.

    Attributes:
        benchmark: whose it is.
        metric: what it is.
        is_main: whether it is the one that is compared with the paper.
        questions: how many it is about.
        value: percent.
        low, high: its binomial 95 % interval in percent; None where it is no share.
    """

    benchmark: Benchmark
    metric: Metric
    is_main: bool
    questions: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Average:
    """The mean over the benchmarks that were run, in percent, and the paper's over the same ones."""

    titles: tuple[str, ...]
    value: float
    low: float
    high: float
    paper: float
    fastvlm: float

    @property
    def is_complete(self) -> bool:
        """Whether all seven were run, as for the paper's 62.1."""
        return len(self.titles) == len(BENCHMARKS)


@dataclass(frozen=True)
class Report:
    """All rows, the average, and what a reader has to know."""

    rows: tuple[Row, ...]
    average: Average
    notes: tuple[str, ...]


def report(benchmarks: Sequence[Benchmark], results: Mapping[str, Result], *, limit: int | None, judge: str) -> Report:
    """What results add up to.

    Args:
        benchmarks: that were run, at least one.
        results: by name.
        limit: the first questions alone were asked.
        judge: of MM-Vet.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for benchmark in benchmarks:
        result = results[benchmark.name]
        for metric in (benchmark.metric, *benchmark.variants):
            if metric.key in result.metrics:
                rows.append(_row(benchmark, metric, result))
        if benchmark.needs_judge:
            notes.append(
                f"{benchmark.title} was scored by {judge}; the paper's judge is not known, and scores move by 1.7 to "
                "2.8 points with it."
            )
        if result.unjudged:
            notes.append(
                f"{benchmark.title}: the judge scored {result.counts[benchmark.metric.key] - result.unjudged} of "
                f"{result.counts[benchmark.metric.key]} answers; the others count as wrong, so this is no result."
            )
    if limit is not None:
        notes.append(f"only the first {limit} questions of each were asked: no figure to compare with the paper's.")
    main = [row for row in rows if row.is_main]
    return Report(tuple(rows), _average(main), tuple(notes))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` answers by Wilson's score (Journal of the ASA 22, 1927)."""
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def as_json(found: Report) -> dict[str, Any]:
    """For other programs; percent throughout."""
    return {
        "results": [
            {
                "benchmark": row.benchmark.name,
                "metric": row.metric.key,
                "compared": row.is_main,
                "questions": row.questions,
                "value": row.value,
                "interval": None if row.low is None else [row.low, row.high],
                "paper": row.benchmark.paper if row.is_main else None,
                "fastvlm": row.benchmark.fastvlm if row.is_main else None,
            }
            for row in found.rows
        ],
        "average": {
            "benchmarks": [row.benchmark.name for row in found.rows if row.is_main],
            "complete": found.average.is_complete,
            "value": found.average.value,
            "interval": [found.average.low, found.average.high],
            "paper": found.average.paper,
            "fastvlm": found.average.fastvlm,
        },
        "notes": list(found.notes),
    }


def _row(benchmark: Benchmark, metric: Metric, result: Result) -> Row:
    share = result.metrics[metric.key] / benchmark.full
    count = result.counts[metric.key]
    low, high = wilson(share, count) if metric.is_share and count else (None, None)
    percent = [None if number is None else 100 * number for number in (low, high)]
    return Row(benchmark, metric, metric is benchmark.metric, count, 100 * share, *percent)


def _average(rows: Sequence[Row]) -> Average:
    """The mean of independent shares, whose intervals are joined (Zou and Donner, Statistics in Medicine 27, 2008)."""
    value = statistics.fmean(row.value for row in rows)
    low = math.sqrt(sum((row.value - row.low) ** 2 for row in rows if row.low is not None)) / len(rows)
    high = math.sqrt(sum((row.high - row.value) ** 2 for row in rows if row.high is not None)) / len(rows)
    return Average(
        tuple(row.benchmark.title for row in rows),
        value,
        value - low,
        value + high,
        statistics.fmean(row.benchmark.paper for row in rows),
        statistics.fmean(row.benchmark.fastvlm for row in rows),
    )
