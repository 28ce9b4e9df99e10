"""`mobileo-mlx dataset`: training data from pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import batch_run, options, printing

if TYPE_CHECKING:
    from mobileo_mlx.datasets.build import Build
    from mobileo_mlx.datasets.samples import Sample

NAME = "dataset"
HELP = "Make training data of pictures, and check it."

_SHOWN = 20  # pictures that are left out, and named


@options.takes(batch_run.task_options("ask"), options.group(options.Loading), options.group(batch_run.Computing))
def build(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With pictures, in sub-folders, too.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.jsonl", help="The new file for finetune; a build of it goes on.")
    ],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            "--annotations",
            metavar="FILE",
            help="Conversations as LLaVA writes them, or COCO's captions. May be given several times. "
            "[default: those in FOLDER itself]",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            "--text-column", metavar="NAME", help="Of captions in metadata.jsonl or .csv. [default: those usual]"
        ),
    ] = None,
    all_captions: Annotated[
        bool, typer.Option("--all-captions", help="A sample of each caption of a picture, not of the first alone.")
    ] = False,
    edit_suffix: Annotated[
        str,
        typer.Option(
            "--edit-suffix", metavar="END", help="With _edit, a_edit.png is an edit of a.png; empty: there are none."
        ),
    ] = "_edit",
    questions: Annotated[
        str,
        typer.Option(
            "--questions",
            metavar="HOW",
            help="describe: that for a caption where a picture has no other; checks: also what its caption says "
            "of things, colours and numbers; none.",
        ),
    ] = "describe",
    ask: Annotated[
        list[str] | None,
        typer.Option(
            "--ask", metavar="QUESTION", help="Let a model answer this about each picture. May be given several times."
        ),
    ] = None,
    describe: Annotated[
        str,
        typer.Option("--describe", metavar="TEXT", help="How a caption is asked for, of the model and in training."),
    ] = "Describe the image.",
    duplicates: Annotated[
        str,
        typer.Option(
            "--duplicates", metavar="RULE", help="exact: equal pixels are left out; near: equal looks, too; keep."
        ),
    ] = "exact",
    near: Annotated[
        int, typer.Option("--near", metavar="N", help="Bits of 64 in which equal looks may differ, 0 to 16.")
    ] = 3,
    split: Annotated[
        float,
        typer.Option("--split", metavar="SHARE", help="Of the pictures, for a second file that is not trained on."),
    ] = 0.0,
    review: Annotated[
        Path | None,
        typer.Option("--review", metavar="FILE.html", help="Write a page to look at all samples and choose."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE.json", help="Only the samples that a review has kept.")
    ] = None,
    keep_passing: Annotated[
        bool,
        typer.Option("--keep-passing", help="Only samples of which --model judges that the picture shows the text."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Make training data of a folder of pictures.

    Captions come from texts beside the pictures (cat.txt), metadata.jsonl or .csv, conversations or COCO's captions; or
    with --model (or --servers, --dask) from the model itself. Nothing in the folder is changed.
    """
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.datasets.build import LEFT_OUT, Build, Options
    from mobileo_mlx.datasets.kept import Kept
    from mobileo_mlx.errors import OptionError

    given = options.resolve_preset(given)
    asks = any(given.get(name) is not None for name in ("model", "servers", "dask"))
    if ask and not asks:
        raise OptionError("--ask needs somebody who answers: give --model, --servers or --dask, too.")
    if keep_passing and given.get("model") is None:
        raise OptionError("--keep-passing needs a model on this machine, which judges: give --model, too.")
    chosen = Options(
        annotations=tuple(annotations or ()),
        text_column=text_column,
        all_captions=all_captions,
        edit_suffix=edit_suffix,
        duplicates=duplicates,
        near=near,
        questions=questions,
        split=split,
        captioned=asks,
        describe=describe,
        ask=tuple(ask or ()),
    )
    kept = None if keep is None else Kept.read(keep)
    if review is not None:
        check_output(review, overwrite=overwrite)
    work = Build(folder, out, chosen, overwrite=overwrite)
    try:
        with printing.Progress("reading the pictures") as bar:
            for done, total in work.look(thumbnails=review is not None):
                if done % 20 == 0 or done == total:
                    bar.update(done, total)
        if asks:
            _ask(work, given)
        samples = work.samples(kept)
        if keep_passing:
            samples = _judge(work, samples, given)
        if review is not None:
            from mobileo_mlx.datasets.review import write_review

            write_review(samples, review, title=str(out), overwrite=overwrite)
        for kind, problem in work.left_out[:_SHOWN]:
            printing.note(f"left out ({kind}): {problem}")
        if len(work.left_out) > _SHOWN:
            printing.note(f"and {len(work.left_out) - _SHOWN} more: see {work.work / LEFT_OUT}")
        written = work.write(samples)
        found = work.figures(samples)
    finally:
        work.close()
    if as_json:
        files = {str(path): count for path, count in written.items()}
        left_out = [{"kind": kind, "name": one.name, "reason": one.reason} for kind, one in work.left_out]
        page = None if review is None else str(review)
        printing.report({"files": files, "review": page, **found, "left_out_samples": left_out})
        return
    for path, count in written.items():
        printing.out(f"{path}: {printing.count(count, 'sample')}")
    if review is not None:
        printing.out(str(review))
    for line in _figures(found):
        printing.note(line)


def _ask(work: Build, given: dict[str, Any]) -> None:
    """Lets a model caption and answer what has no text yet."""
    from mobileo_mlx.datasets import answers

    chosen = batch_run.chosen_options(given, "ask")
    answers.check_asked(work.work, {**options.loading(given), **chosen})
    if lines := work.lines(retry_failed=bool(given.get("retry_failed"))):
        batch_run.run_lines(lines, answers.next_run(work.work), given, chosen, label="asking the model")


def _judge(work: Build, samples: list[Sample], given: dict[str, Any]) -> list[Sample]:
    """The samples that a model lets pass."""
    from mobileo_mlx import identity
    from mobileo_mlx.datasets.judged import judge_samples

    model = options.load(**options.loading(given), keep_loaded=True)
    verdicts = {}
    with printing.Progress("judging") as bar:
        for id, reason in judge_samples(samples, work.folder.path, model, identity.of(model), work.work):
            verdicts[id] = reason
            bar.update(len(verdicts), len(samples))
    return work.leave_out_failing(samples, verdicts)


def _figures(found: dict[str, Any]) -> list[str]:
    """The figures for people."""

    def spread(name: str) -> str:
        numbers = found[name]
        return "none" if numbers is None else "{smallest} to {largest}, median {median}".format(**numbers)

    origins = ", ".join(f"{count} of {name}" for name, count in found["prompts_from"].items())
    words = ", ".join(f"{word} {count}" for word, count in list(found["most_frequent_words"].items())[:10])
    left_out = ", ".join(f"{count} {kind}" for kind, count in found["left_out"].items())
    return [
        f"{printing.count(found['pictures'], 'picture')}; left out: {left_out or 'none'}",
        f"{printing.count(found['drawings'], 'drawing')}, {printing.count(found['edits'], 'edit')}, "
        f"{printing.count(found['questions'], 'question')}, "
        f"{found['held_out']} held out",
        f"prompts: {origins}; {found['distinct_prompts']} distinct; words: {spread('words_of_a_prompt')}",
        f"width: {spread('width')}; height: {spread('height')}",
        f"most frequent words: {words}",
    ]


def check(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A JSONL file, a WebDataset shard (*.tar), either also gzipped, or a folder of shards."
        ),
    ],
    train: Annotated[str, typer.Option("--train", metavar="STAGE", help="Which of finetune's stages.")] = "lora",
    layout: Annotated[
        str, typer.Option("--layout", metavar="NAME", help="inference or upstream, as for finetune.")
    ] = "inference",
    as_json: options.Json = False,
) -> None:
    """Check training data as finetune does, without a model.

    Every line is read and every image decoded. Exit status 2: there are problems, all of which are listed.
    """
    from mobileo_mlx.training.data import read_data
    from mobileo_mlx.training.options import Options
    from mobileo_mlx.training.quadruplets import DataError
    from mobileo_mlx.training.stages import stage_named

    stage = stage_named(train)
    chosen = Options(stage=stage, layout=layout)  # type: ignore[arg-type]  # checked there
    with printing.Progress() as bar:
        try:
            found = read_data(
                data,
                questions=stage.questions,
                default_question=chosen.upstream,
                progress=lambda count: bar.say(f"{count} samples are fine") if count % 50 == 0 else None,
            )
        except DataError as error:
            bar.say("")
            if as_json:
                printing.report({"samples": None, "problems": [vars(problem) for problem in error.problems]})
            else:
                for problem in error.problems:
                    printing.note(str(problem))
            raise
    counts = {
        "samples": len(found.samples),
        "edits": found.edits,
        "questions": found.questions,
        "default_questions": found.default_questions,
    }
    if as_json:
        printing.report({**counts, "problems": []})
        return
    drawings = counts["samples"] - counts["edits"]
    printing.out(
        f"{data}: no problems; {printing.count(counts['samples'], 'sample')}: {printing.count(drawings, 'drawing')}, "
        f"{printing.count(counts['edits'], 'edit')}, {printing.count(counts['questions'], 'question')}"
    )


COMMANDS: dict[str, Callable[..., None]] = {"build": build, "check": check}
