"""The command: `python -m benchmarks.parity DIR`.

Exit status: 0 all agree, 1 some do not or were not exercised, 2 the comparison can't be made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the reference directory")
    parser.add_argument("--component", action="append", default=[], metavar="NAME", help="run only this; repeatable")
    parser.add_argument("--tensors", action="store_true", help="a row for each tensor, not for each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument(
        "--fullsize",
        type=Path,
        metavar="CHECKPOINT",
        help="compare a full-size checkpoint, written by DIR/fullsize/write_fullsize.py, instead of the tiny one",
    )
    options = parser.parse_args(arguments)
    if options.fullsize is not None and options.component:
        parser.error("--component chooses among the tiny model's; leave it out with --fullsize")

    # On an M5 float32 would otherwise mean TF32, which has the mantissa of float16.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    from mobileo_mlx.errors import MobileOError

    from .fullsize import run_fullsize
    from .goldens import Reference
    from .report import summary, table, write_json
    from .runner import run

    reference = Reference(options.directory)
    try:
        if options.fullsize is not None:
            report = run_fullsize(reference, options.fullsize, print_progress)
        else:
            report = run(reference, options.component)
            if reference.fullsize and not options.component:
                report.not_run.append("fullsize (needs --fullsize CHECKPOINT)")
        if options.json is not None:
            write_json(report, options.json)
    except MobileOError as error:
        print(f"parity: error: {error}", file=sys.stderr)
        return 2
    every_tensor = options.tensors or options.fullsize is not None  # full-size goldens are a single case
    for line in (*table(report, every_tensor), "", *summary(report)):
        print(line)
    return 0 if report.passed else 1


def print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
