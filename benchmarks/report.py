"""All targets in one table: `python -m benchmarks.report`.

Reads what the other benchmarks wrote into a folder, and runs the two that take seconds, `flops` and `startup`, itself.
What was not measured says so; what is missed is shown as missed. Writes report.md there.
Exit status: 0 no target that was measured is missed, 1 some are, 2 it can't be done.

From memory.json it takes {"rows": [{"name", "target_gb", "measured_gb", "accounted_gb"}, ...]}: numbers, or null where
there is none; a row is met when neither figure is above the target.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import common

NEAR_LINEAR = 1.15  # the exponent that still counts as linear; attention adds a little
SAME_IMAGE = 1e-4  # relative difference after a step, float32


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        measured: as text; "not measured", with the reason, where there is none.
        met: None where it was not measured.
    """

    name: str
    target: str
    measured: str
    met: bool | None
    command: str


Result = Mapping[str, Any] | None
PYTHON = "python -m benchmarks."
_NO_FILE = "not measured: run the command"


def flops_lines(found: Result) -> Iterator[Target]:
    command = f"{PYTHON}flops"
    if found is None:
        yield Target("operations of each stage", "see the command", _NO_FILE, None, command)
        return
    for row in found["rows"]:
        if row["target"] is not None:
            measured = f"{row['value']:,.4g} {row['unit']}".strip()
            yield Target(row["name"], f"<= {row['target']:,g} {row['unit']}".strip(), measured, row["met"], command)


def startup_lines(found: Result) -> Iterator[Target]:
    command = f"{PYTHON}startup"
    if found is None:
        yield Target("start-up", "see the command", _NO_FILE, None, command)
        return
    for row in found["rows"]:
        measured = f"{row['seconds']:.3f} s" + (f", imports {', '.join(row['heavy'])}" if row["heavy"] else "")
        yield Target(row["name"], f"<= {row['target']:g} s", measured, row["met"], command)


def torch_lines(found: Result) -> Iterator[Target]:
    from .vs_torch import NAMES, TARGETS

    command = f"{PYTHON}vs_torch"
    rows = {row["name"]: row for row in (found or {}).get("rows", ())}
    for name, target in TARGETS.items():
        title, wanted = f"{NAMES[name]}, speed against PyTorch on a CPU", f">= {target:g}"
        if name not in rows:
            yield Target(title, wanted, _NO_FILE, None, command)
        elif not (found or {})["full_size"]:
            yield Target(title, wanted, "not measured: the file is of a smaller model", None, command)
        else:
            ratio = rows[name]["ratio"]
            yield Target(title, wanted, f"{ratio:.2f}", ratio >= target, command)


def memory_lines(found: Result) -> Iterator[Target]:
    command = f"{PYTHON}memory"
    if found is None:
        yield Target("memory: above the weights, and planned footprints", "see the command", _NO_FILE, None, command)
        return
    for row in found["rows"]:
        figures = {kind: row.get(f"{kind}_gb") for kind in ("measured", "accounted")}
        known = {kind: value for kind, value in figures.items() if value is not None}
        target = row.get("target_gb")
        text = ", ".join(f"{value:.2f} GB {kind}" for kind, value in known.items()) or "not measured"
        met = None if target is None or not known else max(known.values()) <= target
        yield Target(row["name"], "" if target is None else f"<= {target:g} GB", text, met, command)


def growth_lines(found: Result) -> Iterator[Target]:
    from .growth import TITLES

    command = f"{PYTHON}growth"
    reason = _NO_FILE if found is None or found["size"] else "not measured: the file is of a tiny model"
    series = {entry["name"]: entry for entry in found["series"]} if found is not None and found["size"] else {}
    for name, (title, _) in TITLES.items():
        for what in ("time", "memory"):
            exponent = series.get(name, {}).get(f"{what}_exponent")
            text, met = reason, None
            if exponent is not None:
                labels = [point["label"] for point in series[name]["points"]]
                text, met = f"{exponent:.2f} ({labels[0]} to {labels[-1]})", exponent <= NEAR_LINEAR
            yield Target(f"growth of the {title}: exponent of {what}", f"<= {NEAR_LINEAR}", text, met, command)
    difference = series.get("batch", {}).get("difference")
    yield Target(
        "a seed in a batch and alone: relative difference",
        f"<= {SAME_IMAGE:g}",
        reason if difference is None else f"{difference:.1e}",
        None if difference is None else difference <= SAME_IMAGE,
        command,
    )


def latency_lines(found: Result) -> Iterator[Target]:
    from .latency import PAPER

    command = f"{PYTHON}latency --model MODEL"
    machine, _, *paper = next(entry for entry in PAPER if entry[:2] == ("MacBook M2 Pro", "Mobile-O-0.5B"))
    rows = {row["name"]: row["seconds"]["mean"] for row in (found or {}).get("rows", ())}
    chip = common.computing_chip(found["machine"]) if found is not None else ""
    there = found is not None and "M2 Pro" in chip and found["size"] == "0.5b" and found["pixels"] == 512
    reason = f"not measured: {found['model']} was measured on {chip}" if found is not None else _NO_FILE
    columns = (
        ("vision", "vision encoder", 1e3, "ms"),
        ("first_token", "first token", 1e3, "ms"),
        ("image", "an image", 1, "s"),
    )
    for (name, title, factor, unit), (target, _) in zip(columns, paper, strict=True):
        value = rows[name] * factor if there and name in rows else None
        yield Target(
            f"{title}, {machine}",
            f"< {target:g} {unit}, the paper's",
            reason if value is None else f"{value:.4g} {unit}",
            None if value is None else value < target,
            command,
        )


def preset_lines(found: Result) -> Iterator[Target]:
    from .paired_stats import LOSS, TITLES

    command = f"{PYTHON}presets"
    target = f"lower end of the 95 % interval >= {LOSS:g} points"
    if found is None:
        yield Target("presets of drawing against the default", target, _NO_FILE, None, command)
        return
    for row in found["rows"]:
        if not row["tried"]:
            text = f"{row['difference']:+.2f} points ({row['low']:+.2f} to {row['high']:+.2f}), n = {row['n']}"
            name = f"{TITLES[row['task']]}, preset {row['preset']}, {row['speed']:.2f} times the default's speed"
            limited = row["offered"] is not None
            yield Target(name, target if limited else "", text, row["offered"], command)


SOURCES: Mapping[str, Callable[[Result], Iterator[Target]]] = {
    "flops": flops_lines,
    "startup": startup_lines,
    "vs_torch": torch_lines,
    "memory": memory_lines,
    "growth": growth_lines,
    "latency": latency_lines,
    "presets": preset_lines,
}


def lines(folder: Path) -> list[Target]:
    """All lines, from the JSON files in a folder.

    Raises:
        CheckpointError: a file is damaged.
    """
    found: dict[str, Result] = {
        name: common.read_json(path) if (path := folder / f"{name}.json").exists() else None for name in SOURCES
    }
    found["latency"] = _latency(folder)
    return [line for name, source in SOURCES.items() for line in source(found[name])]


def _latency(folder: Path) -> Result:
    """The newest result of benchmarks.latency, on the paper's MacBook if there is one."""
    from .latency import read_records

    records = [record for path in sorted(folder.glob("latency-*.json")) for record in read_records(path)]
    there = [record for record in records if "M2 Pro" in common.computing_chip(record["machine"])]
    return max(there or records, key=lambda record: record["machine"]["date"], default=None)


def markdown(report: Sequence[Target]) -> Iterator[str]:
    """The table, and a count."""
    verdicts = {None: "", True: "yes", False: "MISSED"}
    head = ("what", "target", "measured", "met", "command")
    rows = [(line.name, line.target, line.measured, verdicts[line.met], f"`{line.command}`") for line in report]
    yield from common.markdown_table(head, rows)
    yield ""
    yield (
        "The paper's vision encoder was faster than that GPU's peak allows, so it ran on the neural engine, which MLX "
        "does not use; see the floor in roofline.md."
    )
    yield ""
    met, missed = (sum(line.met is verdict for line in report) for verdict in (True, False))
    aimless = sum(line.met is None and not line.target for line in report)
    unmeasured = len(report) - met - missed - aimless
    yield f"{met} met, {missed} missed, {unmeasured} not measured; {aimless} lines have no target."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--no-run", action="store_true", help="run nothing; read what is there")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=common.RESULTS, help=f"of the results (default: {common.RESULTS})"
    )
    options = parser.parse_args(arguments)
    return common.exit_status("report", lambda: _run(options.folder, run=not options.no_run))


def _run(folder: Path, *, run: bool) -> int:
    from . import flops, startup

    if run:
        for name, tool in (("flops", flops), ("startup", startup)):
            common.say(f"running {name}")
            with contextlib.redirect_stdout(io.StringIO()):  # its lines come in our table
                status = tool.main(["--out", str(folder)])
            if status not in (0, 1):
                return status
    report = lines(folder)
    text = list(markdown(report))
    print("\n".join(text))
    common.write_lines(text, folder / "report.md")
    return 1 if any(line.met is False for line in report) else 0


if __name__ == "__main__":
    sys.exit(main())
