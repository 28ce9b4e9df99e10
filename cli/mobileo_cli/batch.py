"""`mobileo-mlx batch`: many pictures and answers from a file of tasks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mobileo_mlx.batch.tasks import TEXTS

from . import batch_run, inputs, options, printing

NAME = "batch"


@options.takes(batch_run.task_options(*TEXTS), options.group(options.Loading), options.group(batch_run.Computing))
def command(
    jobs: Annotated[
        str, typer.Argument(metavar="JOBS", help="A file with one task a line, as JSON; .gz is read, too.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for results; a run in it goes on.")],
    suffix: Annotated[str, typer.Option("--format", metavar="KIND", help="Of pictures: png, jpg or webp.")] = "png",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="SEED", help="Of all lines without one. [default: made of the id]")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Of all pictures, in pixels. [default: the model's]")
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Do the other lines; bad ones go to failed.jsonl.")
    ] = False,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Do many tasks: draw, edit, ask and caption, a line each.

    The options are those of all lines that do not give their own. A run that was stopped goes on where it was, and
    several may work in one folder. Exit status 1: some lines failed.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import check_input, expand

    if jobs == inputs.STDIN:
        raise OptionError("a run that can go on needs a file: write the tasks into one, and give its name.")
    path = Path(os.path.abspath(expand(jobs)))
    check_input(path, error=OptionError)
    given = options.resolve_preset(given, speeds=True)
    chosen = batch_run.chosen_options(given, *TEXTS, seed=seed, size=size)
    run = batch_run.run_file(path, out, given, chosen, suffix=_suffix(suffix), skip=skip_bad_lines)
    _summarize(run, as_json=as_json)
    if run.progress.failed:
        raise typer.Exit(1)


def _suffix(kind: str) -> str:
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.image_settings import FORMATS, can_write

    suffix = f".{kind.lower().removeprefix('.')}"
    if suffix not in FORMATS or not can_write(FORMATS[suffix]):
        raise OptionError(f"--format {kind}: choose png, jpg or webp.")
    return suffix


def _summarize(run: batch_run.Finished, *, as_json: bool) -> None:
    from mobileo_mlx.batch.folder import FAILED
    from mobileo_mlx.batch.results import RESULTS

    target, progress, seconds = run.folder, run.progress, run.seconds
    if as_json:
        printing.report(
            {
                "folder": str(target),
                "results": str(target / RESULTS),
                "failures": str(target / FAILED) if progress.failed else None,
                **vars(progress),
                "seconds": seconds,
            }
        )
        return
    failed = f", {progress.failed} failed (see {FAILED})" if progress.failed else ""
    now = f", {progress.computed} of them now in {printing.seconds(seconds)}" if progress.computed else ""
    printing.out(f"{target / RESULTS}: {progress.done} done{failed}{now}")
