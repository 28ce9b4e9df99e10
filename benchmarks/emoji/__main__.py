"""The commands: `python -m benchmarks.emoji fetch|classifier|train|score|sheet`.

Exit status: 0 done, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mobileo_mlx.errors import MobileOError, OptionError

TRUTH = "truth"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emoji", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    fetch = commands.add_parser("fetch", help="get the pictures and names by npm")
    fetch.set_defaults(run=run_fetch)

    classifier = commands.add_parser("classifier", help="train the judge of single things, and measure it")
    classifier.add_argument("--out", type=Path, metavar="DIR", help="of checkpoints; a stopped run resumes from here")
    classifier.add_argument("--measure", action="store_true", help="only measure the one that is there")
    classifier.set_defaults(run=run_classifier)

    train = commands.add_parser("train", help="train the small model from random weights, stage by stage")
    train.add_argument("--stage", default="all", help="the name of one, export, or all (default)")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="a stopped run resumes from here")
    train.add_argument("--workers", type=int, default=0, help="processes that make batches ahead, for a GPU")
    train.set_defaults(run=run_train)

    score = commands.add_parser("score", help="score a model: drawings, answers and edits")
    add_model(score, "; or truth: true pictures, for the most that any model can have")
    score.add_argument("--autoencoder", metavar="MODEL", help="with --model truth: as this one's gives it back")
    score.add_argument("--n", type=int, default=100, help="samples of each category (default: 100)")
    score.add_argument("--names", type=int, help="emoji to draw by their own names (default: as --n; all: 0)")
    score.add_argument("--only", action="append", choices=("draw", "ask", "edit"), help="a task; repeatable")
    score.add_argument("--out", type=Path, metavar="DIR", help="write score.json, score.md and sheet.png")
    score.set_defaults(run=run_score)

    sheet = commands.add_parser("sheet", help="write a picture of nice prompts as the model draws them")
    add_model(sheet)
    sheet.add_argument("--prompt", action="append", metavar="TEXT", help="in place of the usual ones; repeatable")
    sheet.add_argument("--columns", type=int, default=6, help="(default: 6)")
    sheet.add_argument("--out", type=Path, default=Path("emoji.png"), metavar="FILE", help="(default: emoji.png)")
    sheet.set_defaults(run=run_sheet)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except MobileOError as error:
        print(f"emoji: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emoji: interrupted", file=sys.stderr)
        return 130
    return 0


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument("--model", required=True, help=f"a bundled name, a folder, or a repository on the hub{more}")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: 0)")
    parser.add_argument("--steps", type=int, help="of the sampler, in place of the default")
    parser.add_argument("--guidance-scale", type=float, help="in place of the default")


def drawing_options(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("steps", "guidance_scale")}
    return {name: value for name, value in given.items() if value is not None}


def run_fetch(options: argparse.Namespace) -> None:
    from .sprites import emoji, fetch

    try:
        folder = fetch()
    except OSError as error:
        raise OptionError(f"npm can't be run ({error.strerror}): install Node.js.") from error
    except subprocess.CalledProcessError as error:
        raise OptionError(f"npm failed with status {error.returncode}; what it printed says why.") from error
    print(f"{folder}: {len(emoji())} emoji")


def run_classifier(options: argparse.Namespace) -> None:
    check_fetched()
    from .classifier import load, train, weights
    from .measure import measured
    from .sprites import cache_folder

    if not options.measure:
        for report in train(options.out or cache_folder() / "classifier"):
            if report.step % 20 == 0:
                parts = f"loss {report.loss:.3f}, accuracy {report.metrics['accuracy']:.3f}"
                print(
                    f"{report.step}/{report.steps}: {parts}, {report.samples_per_second:.0f} samples/s",
                    file=sys.stderr,
                    flush=True,
                )
        print(weights())
    for line in measured(load()):
        print(line)


def run_train(options: argparse.Namespace) -> None:
    from .recipe.train import recipe

    recipe(options.out, options.workers).run_all(options.stage, partial(print, flush=True))


def run_score(options: argparse.Namespace) -> None:
    from mobileo_mlx import MobileO
    from mobileo_mlx.atomic import atomic_write, check_output

    from ..scoring import OUTPUTS, record
    from ..shapes.report import ScoreReport, table
    from .classifier import load, rank
    from .score import (
        TASKS,
        drawn_by,
        edited_by,
        score_answers,
        score_drawing,
        score_edits,
        true_pictures,
    )

    if options.n < 1:
        raise OptionError("at least 1 sample of each category is needed.")
    if options.autoencoder is not None and options.model != TRUTH:
        raise OptionError("--autoencoder is for true pictures; give --model truth, too.")
    check_fetched()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in (*OUTPUTS, "score.md"):
            check_output(options.out / name)
    classify = partial(rank, load())
    drawing = drawing_options(options)
    tasks = options.only or TASKS
    model = None if options.model == TRUTH else MobileO.load(options.model)
    if model is None:
        autoencoder = MobileO.load(options.autoencoder) if options.autoencoder is not None else None
        draw = lambda captions, rng: true_pictures([one.scene for one in captions], autoencoder)  # noqa: E731
        change = lambda edits, rng: true_pictures([one.after for one in edits], autoencoder)  # noqa: E731
    else:
        draw, change = drawn_by(model, drawing), edited_by(model, drawing)
    report = ScoreReport(options.model, {"n": options.n, "names": options.names, "seed": options.seed, **drawing})

    def scored() -> Iterator[Any]:
        if "draw" in tasks:
            yield from score_drawing(draw, classify, options.n, seed=options.seed, names_count=options.names)
        if "ask" in tasks and model is not None:
            yield from score_answers(model, options.n, seed=options.seed)
        if "edit" in tasks:
            yield from score_edits(change, classify, options.n, seed=options.seed)

    record(report, scored(), options.out)
    if options.out is not None:
        with atomic_write(options.out / "score.md") as temporary:
            temporary.write_text("\n".join(table(report)) + "\n", encoding="utf-8")


def run_sheet(options: argparse.Namespace) -> None:
    from mobileo_mlx import MobileO
    from mobileo_mlx.images import save_png

    from .hero import PROMPTS, hero

    prompts = options.prompt or PROMPTS
    model = MobileO.load(options.model)
    drawing = drawing_options(options)
    images = [model.generate(prompt, seed=options.seed, **drawing).images[0] for prompt in prompts]
    save_png(hero(prompts, images, columns=options.columns), options.out, None)
    print(options.out)


def check_fetched() -> None:
    """
    Raises:
        OptionError: the pictures and names are not there.
    """
    from .sprites import cache_folder

    folder = cache_folder() / "node_modules"
    if not folder.is_dir():
        raise OptionError(f"there is no '{folder}': run `python -m benchmarks.emoji fetch`.")


if __name__ == "__main__":
    sys.exit(main())
