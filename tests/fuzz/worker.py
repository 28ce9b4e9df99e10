"""Feeds one entry with many inputs, in a process that a hang or a lack of memory may end.

    python -m fuzz.worker ENTRY COUNT SEED FOLDER

writes FOLDER/report.json; FOLDER/last holds the input at hand, for the case that the process does not live to report.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from .entries import ENTRIES, Testbed, use
from .inputs import INPUTS
from .limits import MEMORY, TooSlow, limited, peak_memory
from .outcome import fault

SECONDS = float(os.environ.get("MOBILEO_FUZZ_SECONDS", "5"))


def main(name: str, count: int, seed: int, folder: Path) -> None:
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    bed = Testbed(folder)
    entry, strategy = ENTRIES[name], INPUTS[name](bed)
    with bed.cleared():
        use(bed.model)  # imports and builds what the first use builds
    found: dict[str, list[Any]] = {}
    done, slowest, peak = 0, 0.0, 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def probe(value: Any) -> None:
        nonlocal done, slowest, peak
        text = repr(value)
        (folder / "last").write_text(text, encoding="utf-8", errors="surrogatepass")
        start = time.perf_counter()
        with bed.cleared():
            try:
                with limited(SECONDS):
                    problem = fault(lambda: entry(bed, value))
            except TooSlow as error:
                problem = f"TooSlow: {error}"
        done += 1
        slowest = max(slowest, time.perf_counter() - start)
        before, peak = peak, peak_memory()
        if not problem and peak > max(MEMORY, before):
            problem = f"{peak / 1e9:.2f} GB were taken"
        if problem:
            times, smallest = found.get(problem, (0, text))
            found[problem] = [times + 1, min(text, smallest, key=len)]

    probe()
    report = {"entry": name, "inputs": done, "seconds": slowest, "peak": peak, "found": found}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
