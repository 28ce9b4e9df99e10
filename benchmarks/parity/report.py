"""The table, and the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobileo_mlx.errors import OutputError

from ..common import markdown_table
from .compare import RATIO_LIMIT, Check
from .runner import ParityReport

_HEAD = ("component", "case", "tensor (worst)", "max abs", "relative", "tolerance", "ratio", "verdict")


def table(report: ParityReport, every_tensor: bool = False) -> Iterator[str]:
    """The lines of the table: a row for each case with its worst tensor, or for each tensor.

    The ratio of a case is the largest of its tensors', so that none hides behind another.
    """
    rows = [_row([check]) for check in report.checks] if every_tensor else [_row(case) for case in _cases(report)]
    yield from markdown_table(_HEAD, rows, names=3)


def summary(report: ParityReport) -> Iterator[str]:
    """What the table does not say at a glance."""
    for check in report.checks:
        if check.verdict in ("fail", "not exercised"):
            yield f"{check.verdict}: {check.component} / {check.case} / {check.tensor}{_because(check.note)}"
    for check in report.checks:
        if check.verdict == "pass" and check.large_ratio:
            where = f"{check.component} / {check.case} / {check.tensor}"
            yield f"ratio {_ratio(check.ratio)} above {RATIO_LIMIT:.0f}: {where}{_because(check.note)}"
    for words, names in (
        ("absent from the directory", report.absent),
        ("not run", report.not_run),
    ):
        if names:
            yield f"{words}: {', '.join(names)}"
    counts = {
        verdict: sum(c.verdict == verdict for c in report.checks) for verdict in ("pass", "fail", "not exercised")
    }
    yield (
        f"{'PASS' if report.passed else 'FAIL'}: {counts['pass']} values agree, {counts['fail']} do not, "
        f"{counts['not exercised']} were not exercised."
    )


def write_json(report: ParityReport, path: Path) -> None:
    """Writes all checks, for programs.

    Raises:
        OutputError: the file can't be written.
    """
    value = {
        "passed": report.passed,
        "absent": report.absent,
        "not_run": report.not_run,
        "checks": [_jsonable(check) for check in report.checks],
    }
    try:
        path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"'{path}' can't be written ({error.strerror}); choose another file.") from error


def _cases(report: ParityReport) -> Iterator[list[Check]]:
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in report.checks:
        groups.setdefault((check.component, check.case), []).append(check)
    yield from groups.values()


def _row(checks: list[Check]) -> tuple[str, ...]:
    order = {"fail": 0, "not exercised": 1, "pass": 2, "inputs": 3}
    verdict = min((check.verdict for check in checks), key=order.__getitem__)
    worst = max((c for c in checks if c.verdict == verdict), key=lambda c: c.severity)
    name = worst.tensor if len(checks) == 1 else f"{worst.tensor} (of {len(checks)})"
    ratios = [check.ratio for check in checks if check.ratio is not None]
    ratio = max(ratios, default=None)
    flag = " !" if ratio is not None and ratio > RATIO_LIMIT else ""
    numbers = ["" if n is None else f"{n:.1e}" for n in (worst.max_abs, worst.relative)]
    allowed = "" if worst.tolerance is None else str(worst.tolerance)
    return (worst.component, worst.case, name, *numbers, allowed, _ratio(ratio) + flag, verdict)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def _because(note: str) -> str:
    return f": {note}" if note else ""


def _jsonable(check: Check) -> dict[str, Any]:
    values = asdict(check) | {"tolerance": None if check.tolerance is None else str(check.tolerance)}
    # JSON has no infinity.
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
