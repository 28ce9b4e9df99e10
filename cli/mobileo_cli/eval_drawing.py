"""`mobileo-mlx eval dpg` and `imgedit`: the pictures that other projects score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from . import batch_run, options, printing

_OUT = typer.Option("--out", metavar="DIR", help="The folder for pictures; a run in it goes on.")
_LIMIT = typer.Option("--limit", metavar="N", min=1, help="Do only the first N. [default: all]")
_SIZE = typer.Option("--size", metavar="WxH", help="In pixels. [default: the model's]")


@options.takes(batch_run.task_options("generate"), options.group(options.Loading), options.group(batch_run.Computing))
def dpg(
    out: Annotated[Path, _OUT],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FOLDER", help="Of .txt files, a prompt each. [default: the official 1065]"),
    ] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="SEED", help="Of each prompt's first picture; the next has the next.")
    ] = 42,
    size: Annotated[str | None, _SIZE] = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Draw the prompts of DPG-Bench: a sheet of four pictures each, for its own scorer.

    A run that was stopped goes on where it was; several machines may compute. Exit status 1: some pictures could not be
    drawn.
    """
    from mobileo_mlx.evals import dpg as bench

    found = bench.read_prompts(prompts, limit=limit)
    total = bench.SAMPLES * len(found)
    printing.note(f"{printing.count(len(found), 'prompt')}, {bench.SAMPLES} pictures each: {total} in '{out}'")
    given = options.resolve_preset(given, speeds=True)
    chosen = batch_run.chosen_options(given, "generate", size=size)
    lines = bench.job_lines(found, seed=seed)
    _run(out, lines, given, chosen, lambda folder: bench.arrange(folder, found), "dpg", "sheet", as_json)


@options.takes(batch_run.task_options("edit"), options.group(options.Loading), options.group(batch_run.Computing))
def imgedit(
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="The benchmark's, with basic_edit.json and its images.")
    ],
    out: Annotated[Path, _OUT],
    limit: Annotated[int | None, _LIMIT] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="SEED", help="Of all images.")] = 42,
    size: Annotated[str | None, _SIZE] = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Edit the images of ImgEdit-Bench, for its own scorer.

    A run that was stopped goes on where it was; several machines may compute. Exit status 1: some images could not be
    edited.
    """
    from mobileo_mlx.evals import imgedit as bench

    found = bench.read_edits(data, limit=limit)
    printing.note(f"{printing.count(len(found), 'edit')} in '{out}'")
    given = options.resolve_preset(given, speeds=True)
    chosen = batch_run.chosen_options(given, "edit", size=size)
    lines = bench.job_lines(found, seed=seed)
    _run(out, lines, given, chosen, lambda folder: bench.arrange(folder, found), "imgedit", "image", as_json)


def _run(
    out: Path,
    lines: Iterable[dict[str, Any]],
    given: dict[str, Any],
    chosen: dict[str, Any],
    arrange: Callable[[Path], int],
    label: str,
    thing: str,
    as_json: bool,
) -> None:
    """Does what is left, names what is there, and says it."""
    from mobileo_mlx.evals.geneval_folder import WORK, make_folder

    folder = make_folder(out)
    there = 0

    def finish() -> None:
        nonlocal there
        there = arrange(folder)

    try:
        run = batch_run.run_lines(lines, folder / WORK, given, chosen, label=label, at_end=finish)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # where nothing is in it
        raise
    failed, computed = run.progress.failed, run.progress.computed
    if as_json:
        value = {
            "folder": str(out),
            f"{thing}s": there,
            "batch": str(run.folder),
            "failed": failed,
            "computed": computed,
        }
        printing.report(value)
    else:
        lost = f", {printing.count(failed, 'picture')} failed (see {run.folder / 'failed.jsonl'})" if failed else ""
        now = (
            f", {printing.count(computed, 'picture')} drawn now in {printing.seconds(run.seconds)}" if computed else ""
        )
        printing.out(f"{out}: {printing.count(there, thing)}{lost}{now}")
    if failed:
        raise typer.Exit(1)
