"""Feeds one entry with many inputs, in a process that a hang or a lack of memory may end.

    python -m fuzz.worker ENTRY COUNT SEED FOLDER

writes FOLDER/report.json; FOLDER/last holds the input at hand, for the case that the process does not live to report.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

MEMORY = 1_500_000_000  # bytes beyond what the process takes at its start
SECONDS = float(os.environ.get("MOBILEO_FUZZ_SECONDS", "5"))


class TooSlow(BaseException):
    """An input took longer than `SECONDS`."""


def main(name: str, count: int, seed: int, folder: Path) -> None:
    import hypothesis
    from hypothesis import HealthCheck, Phase, settings

    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    from .entries import ENTRIES, Room
    from .inputs import INPUTS
    from .outcome import fault

    room = Room(folder)
    entry, strategy = ENTRIES[name], INPUTS[name](room)
    with room.cleared():
        pass
    warm_up(room)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def too_slow(*_: Any) -> None:
        raise TooSlow(f"not done in {SECONDS:g} s")

    signal.signal(signal.SIGALRM, too_slow)
    found: dict[str, list[Any]] = {}
    done, slowest, peak = 0, 0.0, 0
    last = folder / "last"

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
        last.write_text(repr(value), encoding="utf-8", errors="surrogatepass")
        start = time.perf_counter()
        with room.cleared():
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            faulthandler.dump_traceback_later(4 * SECONDS, exit=True)  # for native code, which no signal reaches
            try:
                problem = fault(lambda: entry(room, value))
            except TooSlow as error:
                problem = f"TooSlow: {error}"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                faulthandler.cancel_dump_traceback_later()
        done += 1
        slowest = max(slowest, time.perf_counter() - start)
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if now > max(MEMORY, peak):
            problem = problem or f"{now / 1e9:.2f} GB were taken"
        peak = max(peak, now)
        if problem:
            times, smallest = found.get(problem, (0, None))
            text = repr(value)
            found[problem] = [times + 1, text if smallest is None or len(text) < len(smallest) else smallest]

    probe()
    report = {"entry": name, "inputs": done, "seconds": slowest, "peak": peak, "found": found}
    (folder / "report.json").write_text(json.dumps(report))


def warm_up(room: Any) -> None:
    """Imports and builds what the first use builds, before memory is limited."""
    from .entries import use

    with room.cleared():
        use(room.model)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
