"""Tables of what best-of gains: paired with the first candidate, beside the best possible and one at random."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import common
from ..paired_stats import difference, mcnemar
from .judging import NUMBERS, Judged, best_by_luck
from .samples import DRAWINGS, EDITS

ALL_DRAWINGS, ALL_EDITS = "all drawings", "all edits"


def grouped(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """By row, and all drawings and all edits together."""
    rows = [row for row in (*DRAWINGS, *EDITS) if any(one.row == row for one in judged)]
    found = {row: [one for one in judged if one.row == row] for row in rows}
    for name, some in ((ALL_DRAWINGS, DRAWINGS), (ALL_EDITS, EDITS)):
        if together := [one for one in judged if one.row in some]:
            found[name] = together
    return found


def compared(some: Sequence[Judged], way: str, n: int) -> dict[str, Any]:
    """How often a way to choose among `n` is right, and by how much more often than the first candidate, in points."""
    pairs = [(one.right[0], one.outcome(way, n)) for one in some]
    both, lost, won = pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    change, low, high = difference(both, lost, won, pairs.count((False, False)))
    return {
        "right": (both + won) / len(some),
        "difference": 100 * change,
        "low": 100 * low,
        "high": 100 * high,
        "lost": lost,
        "won": won,
        "p": mcnemar(lost, won),
    }


def measured(some: Sequence[Judged]) -> dict[str, Any]:
    """All numbers of a row."""
    right = [verdict for one in some for verdict in one.right]
    passes = [verdict for one in some for verdict in one.passes]
    said = list(zip(right, passes, strict=True))
    wrong_ones, right_ones = right.count(False), right.count(True)
    per_candidate = len(right) / len(some)
    return {
        "n": len(some),
        "first": sum(one.right[0] for one in some) / len(some),
        "random": best_by_luck(some),
        "oracle": {n: sum(one.outcome("oracle", n) for one in some) / len(some) for n in NUMBERS},
        "kept": {n: compared(some, "kept", n) for n in NUMBERS},
        "by_score": {n: compared(some, "score", n) for n in NUMBERS},
        "drawn_until_pass": {n: statistics.fmean(one.drawn(n) for one in some) for n in NUMBERS},
        "wrong": wrong_ones,
        "wrong_passed": said.count((False, True)),
        "right_refused": said.count((True, False)),
        "right_candidates": right_ones,
        "draw_seconds": statistics.fmean(one.drawing for one in some) / per_candidate,
        "judge_seconds": statistics.fmean(one.judging for one in some) / per_candidate,
    }


def markdown(rows: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> Iterator[str]:
    """The tables, and what their columns mean."""
    yield "## What is kept"
    yield ""
    yield from common.markdown_table(
        ("of", "n", "random", "first", *(f"best of {n}" for n in NUMBERS[1:]), "4: interval", "4: oracle", "8: oracle"),
        (_kept_cells(name, row) for name, row in rows.items()),
    )
    yield ""
    yield "## Candidates that are drawn until one passes, and another choice"
    yield ""
    yield from common.markdown_table(
        ("of", "drawn of 2", "of 4", "of 8", "highest score of 2", "of 4", "of 8"),
        (_other_cells(name, row) for name, row in rows.items()),
    )
    yield ""
    yield "## What the model gets wrong, and what it costs"
    yield ""
    yield from common.markdown_table(
        ("of", "wrong candidates", "passed", "right candidates", "refused", "drawing", "judging"),
        (_error_cells(name, row) for name, row in rows.items()),
    )
    yield ""
    yield (
        f"Model {about['model']}, seed {about['seed']}. n: samples, of eight candidates each; shares of what the "
        "scorer calls right. Random: one at random of the eight. First: without best-of. Oracle: the scorer itself "
        "chooses. Intervals: of the difference from the first candidate, in points, 95 %, Newcombe's for paired "
        "proportions. Highest score: of those that pass, in place of the first. Passed, refused: candidates that the "
        "model lets pass and that are wrong, or the other way round. Drawing, judging: seconds of processor time for "
        "a candidate, one thread."
    )
    yield ""
    yield common.machine_line(about["machine"])


def _kept_cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    four = row["kept"][4]
    return (
        name,
        str(row["n"]),
        f"{row['random']:.3f}",
        f"{row['first']:.3f}",
        *(f"{row['kept'][n]['right']:.3f}" for n in NUMBERS[1:]),
        f"{four['difference']:+.1f} ({four['low']:+.1f} to {four['high']:+.1f})",
        f"{row['oracle'][4]:.3f}",
        f"{row['oracle'][8]:.3f}",
    )


def _other_cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        *(f"{row['drawn_until_pass'][n]:.2f}" for n in NUMBERS[1:]),
        *(f"{row['by_score'][n]['right']:.3f}" for n in NUMBERS[1:]),
    )


def _error_cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(row["wrong"]),
        f"{row['wrong_passed']} ({_share(row['wrong_passed'], row['wrong'])})",
        str(row["right_candidates"]),
        f"{row['right_refused']} ({_share(row['right_refused'], row['right_candidates'])})",
        f"{row['draw_seconds']:.3f}",
        f"{row['judge_seconds']:.3f}",
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
