"""Whether a model that looks at what it drew draws better: `python -m benchmarks.best_of`.

Draws candidates of captions and edits of the shapes world, lets the model judge each as `best_of` does, and compares
what it keeps of the first N with the first one alone, with one at random, and with the best of them, by the independent
scorer (`benchmarks.shapes.scorer`), which the model does not know. Candidates and judgements are kept in the folder, so
that a run goes on where it was stopped. Exit status: 0 done, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import common
from . import sheets
from .judging import Judged, judged, rule_digest
from .report import grouped, markdown, measured
from .samples import DRAWINGS, EDITS, ROWS, Sample, draw, samples

if TYPE_CHECKING:
    from mobileo_mlx import MobileO


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.best_of", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="one that knows the shapes world (default: tiny)")
    parser.add_argument("--n", type=int, default=300, help="captions of each row (default: 300)")
    parser.add_argument("--edits", type=int, help="edits of each kind (default: a third of --n)")
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME=N", help="another number for a row; repeatable"
    )
    parser.add_argument("--seed", type=int, default=0, help="of samples and noise (default: 0)")
    parser.add_argument("--draw-only", action="store_true", help="draw what is missing, and stop")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for candidates, tables and sheets")
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("best_of", lambda: _run(options))


def counts(options: argparse.Namespace) -> dict[str, int]:
    """How many samples of each row, by the options.

    Raises:
        OptionError: there is no such row, or no such number.
    """
    from mobileo_mlx.errors import OptionError

    edits = options.n // 3 if options.edits is None else options.edits
    found = {**dict.fromkeys(DRAWINGS, options.n), **dict.fromkeys(EDITS, edits)}
    for text in options.row:
        name, _, number = text.rpartition("=")
        if name not in ROWS or not number.isdecimal():
            raise OptionError(f"--row {text}: write NAME=N, with a name of {', '.join(ROWS)}.")
        found[name] = int(number)
    if min(found.values()) < 0 or not any(found.values()):
        raise OptionError("some samples are needed; give --n, --edits or --row a number above 0.")
    return {row: count for row, count in found.items() if count}


def _run(options: argparse.Namespace) -> None:
    from mobileo_mlx import MobileO

    wanted = list(samples(counts(options), options.seed))
    model = MobileO.load(options.model)
    for done, sample in enumerate(wanted, 1):
        draw(model, sample, options.out / "candidates")
        if done % 100 == 0 or done == len(wanted):
            common.say(f"drawn {done}/{len(wanted)}")
    if options.draw_only:
        return
    path = options.out / f"judged-{rule_digest()}.jsonl"
    drawn = (draw(model, sample, options.out / "candidates") for sample in wanted)
    found: list[Judged] = []
    for _, one in judged(model, drawn, path):
        found.append(one)
        if len(found) % 100 == 0 or len(found) == len(wanted):
            common.say(f"judged {len(found)}/{len(wanted)}")
    about = {"model": options.model, "seed": options.seed, "rules": rule_digest(), "machine": common.machine()}
    rows = {name: measured(some) for name, some in grouped(found).items()}
    lines = list(markdown(rows, about))
    print("\n".join(lines))
    common.write_json({**about, "rows": rows}, options.out / "best_of.json")
    common.write_lines(lines, options.out / "best_of.md")
    _write_sheets(model, wanted, found, options.out)


def _write_sheets(model: MobileO, wanted: Sequence[Sample], found: Sequence[Judged], out: Path) -> None:
    from mobileo_mlx.image_settings import save_image

    # Only what is shown is read again: the pictures of thousands of samples would fill the memory.
    told = [(sample, one) for sample, one in zip(wanted, found, strict=True) if not all(one.right[: sheets.N])]
    pairs = [(draw(model, sample, out / "candidates"), one) for sample, one in told]
    for name, sections in (
        ("helped", [("it helped", sheets.helped(pairs))]),
        (
            "did-not-help",
            [("it chose wrong", sheets.failed(pairs)), ("there was none to choose", sheets.hopeless(pairs))],
        ),
    ):
        if (picture := sheets.sheet(sections)) is not None:
            save_image(picture, out / f"{name}.webp", overwrite=True)


if __name__ == "__main__":
    sys.exit(main())
