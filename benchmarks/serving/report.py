"""What was measured of a server, as JSON and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import common

from .load import Load, Watched

MB = 1e6


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def load_result(found: Load, seen: Watched) -> dict[str, Any]:
    """Of a phase; times in seconds, memory in bytes."""
    return {
        "answered": found.answered,
        "dropped": found.dropped,
        "mixed_up": found.mixed_up,
        "busy": found.busy,
        "seconds": found.duration,
        "kinds": {kind: spread(seconds) for kind, seconds in sorted(found.seconds.items())},
        "health": {**spread(seen.health), "unhealthy": dict(seen.unhealthy)},
        "memory": {
            "start": seen.memory[0][1],
            "end": seen.memory[-1][1],
            "most": max(size for _, size in seen.memory),
            "growth_in_second_half": seen.growth(),
            "samples": [[round(when, 1), size] for when, size in seen.memory],
        },
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    return {
        "count": len(seconds),
        "median": statistics.median(seconds),
        "p95": percentile(seconds, 0.95),
        "most": max(seconds),
    }


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """Three tables: the requests, the server meanwhile, the faults."""
    load, faults = value["load"], value["faults"]
    rows = [
        [kind, str(of["count"]), f"{of['median']:.2f}", f"{of['p95']:.2f}", f"{of['most']:.2f}"]
        for kind, of in load["kinds"].items()
    ]
    yield from common.markdown_table(("request", "answered", "median, s", "95 %, s", "longest, s"), rows)
    yield ""
    head = ("", f"{value['clients']} clients", "faulty clients")
    yield from common.markdown_table(head, _phase_rows(load, faults))
    yield ""
    tried = sorted(faults["tried"].items())
    yield from common.markdown_table(("a client that", "times"), [[name, str(count)] for name, count in tried])
    yield ""
    after = value["after"]
    yield (
        f"After the faults {after['waiting']} requests wait and {after['running'] or 'none'} runs; "
        f"of {after['compared']} asked once more, {after['same']} get the answer that they got at first. "
        f"The server's log has {after['tracebacks']} tracebacks, and SIGTERM ended it with {after['exit_status']}."
    )
    yield ""
    yield f"{common.machine_line(value['machine'])}; model {value['model']}, {value['steps']} steps a drawing."


def _phase_rows(load: Mapping[str, Any], faults: Mapping[str, Any]) -> Iterator[list[str]]:
    def row(name: str, cell: Any) -> list[str]:
        return [name, cell(load), cell(faults)]

    yield row("answered, and as alone", lambda of: f"{of['answered']}")
    yield row("dropped", lambda of: f"{len(of['dropped'])}")
    yield row("mixed up", lambda of: f"{len(of['mixed_up'])}")
    yield row("told to come back (429)", lambda of: f"{of['busy']}")
    yield row("minutes", lambda of: f"{of['seconds'] / 60:.1f}")
    yield row("requests a second", lambda of: f"{of['answered'] / of['seconds']:.1f}")
    yield row("/health, median, ms", lambda of: f"{of['health']['median'] * 1e3:.1f}")
    yield row("/health, 95 %, ms", lambda of: f"{of['health']['p95'] * 1e3:.1f}")
    yield row("/health, not 200", lambda of: f"{sum(of['health']['unhealthy'].values())}")
    yield row("memory at the start, MB", lambda of: f"{of['memory']['start'] / MB:.0f}")
    yield row("at the end, MB", lambda of: f"{of['memory']['end'] / MB:.0f}")
    yield row("growth in the second half, MB", lambda of: f"{of['memory']['growth_in_second_half'] / MB:+.1f}")
