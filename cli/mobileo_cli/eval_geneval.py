"""`mobileo-mlx eval geneval` and `geneval-score`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import batch_run, options, printing

if TYPE_CHECKING:
    from mobileo_mlx.evals.geneval_folder import Pictures
    from mobileo_mlx.evals.geneval_report import Report, Share

_NAMED = 10  # missing pictures
_PAPER = "Mobile-O-0.5B"


@options.takes(batch_run.task_options("generate"), options.group(options.Loading), options.group(batch_run.Computing))
def geneval(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for pictures; a run in it goes on.")],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Others, in GenEval's format. [default: the official 553]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Draw only the first N prompts. [default: all]")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, max=1000, help="Pictures of each prompt.")
    ] = 4,
    seed: Annotated[
        int, typer.Option("--seed", metavar="SEED", help="Of each prompt's first picture; the next has the next.")
    ] = 42,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="In pixels. [default: the model's]")] = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Draw the prompts of GenEval, for geneval-score.

    Without options it draws as the paper's authors did. A run that was stopped goes on where it was; several machines
    may compute. Exit status 1: some pictures could not be drawn.
    """
    from mobileo_mlx.evals import geneval_folder
    from mobileo_mlx.evals.geneval_prompts import read_prompts

    chosen_prompts = read_prompts(prompts, limit=limit)
    given = options.resolve_preset(given, speeds=True)
    chosen = batch_run.chosen_options(given, "generate", size=size)
    total = len(chosen_prompts) * samples
    folder = geneval_folder.make_folder(out)
    each = f"{printing.count(len(chosen_prompts), 'prompt')}, {printing.count(samples, 'picture')} each"
    printing.note(f"{each}: {total} in '{out}'")
    lines = geneval_folder.job_lines(chosen_prompts, samples=samples, seed=seed)

    def arrange() -> None:
        with printing.Progress("giving the pictures their names"):
            geneval_folder.arrange(folder, chosen_prompts, samples=samples)

    try:
        work = folder / geneval_folder.WORK
        run = batch_run.run_lines(lines, work, given, chosen, label="geneval", at_end=arrange)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # where nothing is in it
        raise
    _say_what_is_drawn(out, run, len(chosen_prompts), as_json=as_json)
    if run.progress.failed:
        raise typer.Exit(1)


def _say_what_is_drawn(out: Path, run: batch_run.Finished, prompts: int, *, as_json: bool) -> None:
    there = run.progress.done
    if as_json:
        value = {"folder": str(out), "prompts": prompts, "pictures": there, "batch": str(run.folder)}
        printing.report({**value, "failed": run.progress.failed, "computed": run.progress.computed})
        return
    failed = f", {run.progress.failed} failed (see {run.folder / 'failed.jsonl'})" if run.progress.failed else ""
    now = f", {run.progress.computed} of them now in {printing.seconds(run.seconds)}" if run.progress.computed else ""
    printing.out(f"{out}: {printing.count(there, 'picture')} of {printing.count(prompts, 'prompt')}{failed}{now}")
    printing.out(f"next: mobileo-mlx eval geneval-score {out}")


def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of pictures, in GenEval's layout.")],
    backend: Annotated[
        str,
        typer.Option(
            "--backend", metavar="NAME", help="The detector: mlx, transformers, or package.module:name of another one."
        ),
    ] = "mlx",
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="PATH", help="Of the detector; see docs/evals.md.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The verdicts, as .jsonl. [default: results.jsonl in DIR]"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Score pictures of GenEval by its official rules.

    Verdicts are kept as they come: a command that was stopped goes on, and new pictures are added.
    """
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.evals import geneval_score
    from mobileo_mlx.evals.detectors.backends import load_backend
    from mobileo_mlx.evals.geneval_folder import read_folder
    from mobileo_mlx.evals.geneval_report import summarize

    target = folder / "results.jsonl" if out is None else out
    if target.suffix != ".jsonl":
        raise OptionError(f"--out {target}: choose a name that ends with .jsonl.")
    pictures = read_folder(folder)
    check_output(target, overwrite=True)
    if ":" in backend and "" not in sys.path:
        sys.path.append("")  # a detector of the user's own is mostly a file in the folder where the command is started
    detector = load_backend(backend, weights=weights)
    for sentence in getattr(detector, "notes", ()):
        printing.note(f"note: {sentence}.")
    verdicts = geneval_score.Verdicts(target.with_name(f".{target.stem}-kept.jsonl"))
    results = []
    with printing.Progress("scoring") as bar:
        for result in geneval_score.score(pictures, detector, backend, verdicts):
            results.append(result)
            bar.update(len(results), pictures.count)
    geneval_score.write_results(results, target)
    report = summarize(results)
    if as_json:
        printing.report(_as_json(report, pictures, target, backend))
    else:
        printing.out(_as_text(report, pictures, target, backend))


def _as_json(report: Report, pictures: Pictures, target: Path, backend: str) -> dict[str, Any]:
    from mobileo_mlx.evals.geneval_report import PAPER

    return {
        "results": str(target),
        "backend": backend,
        "overall": _share(report.overall),
        "tasks": {
            task.tag: {
                "prompts": task.prompts,
                "images": task.images,
                "correct": task.correct,
                **_share(task.score),
            }
            for task in report.tasks
        },
        "images": report.images,
        "prompts": report.prompts,
        "correct_images": report.correct_images,
        "correct_prompts": report.correct_prompts,
        "official_prompts": report.official,
        "comparable": report.comparable and not pictures.missing,
        "paper": {"model": _PAPER, **PAPER},
        "missing": list(pictures.missing),
    }


def _share(share: Share) -> dict[str, float | None]:
    return {"score": share.value, "low": share.low, "high": share.high}


def _as_text(report: Report, pictures: Pictures, target: Path, backend: str) -> str:
    from mobileo_mlx.evals.geneval_report import PAPER

    of_paper = report.official == report.prompts
    head = ("task", "prompts", "images", "correct", "score", "95 % interval", *((f"paper, {_PAPER}",) * of_paper))
    rows: list[tuple[str, ...]] = [head]
    for task in report.tasks:
        counts = (str(task.prompts), str(task.images), str(task.correct))
        rows.append((task.tag, *counts, *_cells(task.score), *((f"{PAPER[task.tag]:.2f}",) * of_paper)))
    counts = (str(report.prompts), str(report.images), "")
    rows.append(("overall", *counts, *_cells(report.overall), *((f"{PAPER['overall']:.2f}",) * of_paper)))
    paragraphs = [
        printing.table(rows, [False, *[True] * (len(head) - 1)]),
        f"overall: the mean of the tasks. Correct images: {report.correct_images:.2%}; prompts "
        f"with a correct image: {report.correct_prompts:.2%}.",
        *_reading(report),
        *_incomplete(report, pictures),
        f"detector: {backend}; verdicts with reasons: {target}",
    ]
    return "\n\n".join(paragraphs)


def _cells(share: Share) -> tuple[str, str]:
    known = share.low is not None and share.high is not None
    return f"{share.value:.4f}", f"{share.low:.3f} to {share.high:.3f}" if known else "not known"


def _reading(report: Report) -> list[str]:
    """How the numbers are to be read beside the paper's."""
    from mobileo_mlx.evals.geneval_report import PAPER

    text = "The interval takes the pictures of a prompt together, as they are alike."
    if report.official != report.prompts:
        return [f"{text} These are not the prompts of the paper, whose numbers are not comparable."]
    text += (
        " The random numbers are others than those of the paper, so agreement is statistical: a model that draws as "
        "well as the paper's comes out on either side of its number."
    )
    low, high = report.overall.low, report.overall.high
    if report.comparable and low is not None and high is not None:
        paper = PAPER["overall"]
        inside = low <= paper <= high
        text += f" The paper's {paper:.2f} is {'inside of' if inside else 'outside of'} the interval of the overall"
        text += ": no difference was found." if inside else ": this is a difference that chance hardly explains."
    return [text]


def _incomplete(report: Report, pictures: Pictures) -> list[str]:
    """What a partial run lacks."""
    from mobileo_mlx.evals.geneval_prompts import official_texts

    texts = []
    if report.official == report.prompts < len(official_texts()):
        of = f"{report.prompts} of the {len(official_texts())} official prompts"
        texts.append(f"Partial: {of}; the paper's numbers are of all.")
    if missing := pictures.missing:
        more = f" and {len(missing) - _NAMED} others" if len(missing) > _NAMED else ""
        are = "is" if len(missing) == 1 else "are"
        texts.append(f"Partial: {', '.join(missing[:_NAMED])}{more} {are} missing.")
    return texts
