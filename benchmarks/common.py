"""What the benchmarks share: sizes of prompts, the machine, timing, tables, JSON, and errors in one sentence.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileo_mlx import blas

RESULTS = Path("benchmarks/results")  # where `benchmarks.report` looks
GB = 1e9
PROMPT_TOKENS = 60  # of a request to draw, its template included
POSITIONS = 300  # of a question about an image, the image included


def add_out(parser: argparse.ArgumentParser, what: str = "the results") -> None:
    """The option of the folder that a benchmark writes into."""
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"for {what} (default: {RESULTS})")


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing, in seconds."""

    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seconds)

    @property
    def std(self) -> float:
        """The sample standard deviation; 0 of a single run."""
        return statistics.stdev(self.seconds) if len(self.seconds) > 1 else 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "median": self.median, "runs": list(self.seconds)}


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes. It has to evaluate what it computes."""
    begin = clock()
    run()
    return clock() - begin


def one_thread() -> None:
    """Keeps BLAS to one thread, so that processor time is comparable; call it before torch is imported.

    OpenBLAS reads the environment when it is loaded, which for MLX has happened by now; so it is set there as well.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if blas.loaded() == "OpenBLAS":
        ctypes.CDLL(blas.OPENBLAS).openblas_set_num_threads(1)


def machine() -> dict[str, Any]:
    """The chip, system and versions that a number was measured with."""
    from importlib.metadata import version

    import mlx.core as mx

    info = mx.device_info(mx.default_device())
    return {
        "chip": _chip(),
        "device": str(mx.default_device()).removeprefix("Device(").split(",")[0],
        "gpu": info.get("device_name") if mx.default_device() != mx.cpu else None,
        "os": f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else f"{platform.system()} {_release()}",
        "mlx": version("mlx"),
        "python": platform.python_version(),
        "blas": blas.loaded() or "MLX's own",
        "date": time.strftime("%Y-%m-%d"),
    }


def computing_chip(info: Mapping[str, Any]) -> str:
    """Of a `machine`: the GPU where it computes, else the processor. On a Mac both have one name."""
    return str(info.get("gpu") or info["chip"])


def chip_file(folder: Path, benchmark: str, info: Mapping[str, Any]) -> Path:
    """Where a benchmark keeps the results of a machine's chip."""
    name = re.sub(r"[^a-z0-9]+", "-", computing_chip(info).lower()).strip("-")
    return folder / f"{benchmark}-{name or 'unnamed-chip'}.json"


def machine_line(info: dict[str, Any]) -> str:
    """The machine in one sentence for a table's foot."""
    gpu = f", GPU {info['gpu']}" if info.get("gpu") not in (None, info["chip"]) else ""
    library = f", BLAS: {info['blas']}" if info.get("device") == "cpu" else ""
    return f"{info['chip']}{gpu}, {info['os']}, MLX {info['mlx']} on the {info['device']}{library}, {info['date']}"


def _chip() -> str:
    if sys.platform == "darwin":
        found = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return found.stdout.strip() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _release() -> str:
    return platform.release().split("-")[0]


def fitted_exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The b of y = a x^b by least squares of the logarithms: 1 is linear."""
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (statistics.fmean(column) for column in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1) -> Iterator[str]:
    """The lines of a Markdown table, aligned for a terminal too.

    Args:
        names: how many of the first columns are aligned on the left; the others are numbers, on the right.
    """
    cells = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    for n, row in enumerate(cells):
        padded = [c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield f"| {' | '.join(padded)} |"
        if n == 0:
            rules = ["-" * w if i < names else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
            yield f"| {' | '.join(rules)} |"


def write_json(value: Any, path: Path) -> None:
    """Writes a result, in place of an earlier one.

    Raises:
        OutputError: the file can't be written.
    """
    _write(json.dumps(value, indent=1) + "\n", path)


def write_lines(lines: Iterable[str], path: Path) -> None:
    """Writes a text, in place of an earlier one; OutputError as above."""
    _write("\n".join(lines) + "\n", path)


def read_json(path: Path) -> dict[str, Any]:
    """A result that a benchmark wrote.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    from mobileo_mlx import files

    return files.read_json(path)


def _write(text: str, path: Path) -> None:
    from mobileo_mlx.atomic import atomic_write
    from mobileo_mlx.errors import OutputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{path.parent}' can't be made ({error.strerror}).") from error
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def exit_status(name: str, run: Callable[[], int | None]) -> int:
    """Runs a benchmark: 0 done, 2 a user's mistake, shown as one sentence, 130 stopped with Ctrl-C."""
    from mobileo_mlx.errors import MobileOError

    try:
        return run() or 0
    except MobileOError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
