"""The commands: `python -m benchmarks.shapes score|quadruplets|pictures|geneval-prompts|lmms-data|render|train`.

Exit status: 0 done, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mobileo_mlx.errors import MobileOError, OptionError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    score = commands.add_parser("score", help="score a model: drawings, answers and edits")
    score.add_argument("--model", required=True, help="a bundled name, a folder, or a repository on the hub")
    score.add_argument("--n", type=int, default=100, help="samples of each category (default: 100)")
    score.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: 0)")
    score.add_argument("--only", action="append", choices=("draw", "ask", "edit"), help="a task; repeatable")
    score.add_argument("--new", metavar="NAME", help="also score what 'quadruplets --new NAME' trains")
    score.add_argument("--steps", type=int, help="of the sampler, in place of the default")
    score.add_argument("--guidance-scale", type=float, help="in place of the default")
    score.add_argument("--scheduler", help="in place of the default")
    score.add_argument("--quantize", metavar="BITS", help="such as all=8 or llm=4,dit=8, while loading")
    score.add_argument("--adapter", type=Path, metavar="DIR", help="what 'finetune' wrote")
    score.add_argument("--adapter-scale", type=float, default=1.0, help="how strongly it counts (default: 1)")
    score.add_argument("--out", type=Path, metavar="DIR", help="write score.json and sheet.png to this folder")
    score.set_defaults(run=run_score)

    quadruplets = commands.add_parser("quadruplets", help="write samples to train on")
    quadruplets.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    quadruplets.add_argument("--n", type=int, default=200, help="samples (default: 200)")
    quadruplets.add_argument("--seed", type=int, default=0, help="(default: 0)")
    quadruplets.add_argument("--size", type=int, default=64, help="of the images, in pixels (default: 64)")
    quadruplets.add_argument("--edits", type=float, default=0.25, help="the share of edits (default: 0.25)")
    quadruplets.add_argument("--questions", type=int, default=1, help="of each sample, at most (default: 1)")
    quadruplets.add_argument("--new", metavar="NAME", help="with a colour or shape outside the world: brown, ring")
    quadruplets.add_argument("--new-share", type=float, default=0.5, help="samples that show it (default: 0.5)")
    quadruplets.set_defaults(run=run_quadruplets)

    geneval = commands.add_parser("geneval-prompts", help="write prompts in GenEval's format")
    geneval.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    geneval.add_argument("--n", type=int, default=50, help="prompts of each tag, at most (default: 50)")
    geneval.add_argument("--seed", type=int, default=0, help="(default: 0)")
    geneval.set_defaults(run=run_geneval_prompts)

    pictures = commands.add_parser("pictures", help="write pictures with captions beside them, for dataset build")
    pictures.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    pictures.add_argument("--n", type=int, default=200, help="samples (default: 200)")
    pictures.add_argument("--seed", type=int, default=0, help="(default: 0)")
    pictures.add_argument("--size", type=int, default=64, help="of the images, in pixels (default: 64)")
    pictures.add_argument("--edits", type=float, default=0.0, help="the share of edits (default: 0)")
    pictures.add_argument("--new", metavar="NAME", help="with a colour or shape outside the world: brown, ring")
    pictures.add_argument("--new-share", type=float, default=0.5, help="samples that show it (default: 0.5)")
    pictures.set_defaults(run=run_pictures)

    lmms_data = commands.add_parser("lmms-data", help="write questions in the formats of lmms-eval")
    lmms_data.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    lmms_data.add_argument("--n", type=int, default=100, help="questions of each (default: 100)")
    lmms_data.add_argument("--seed", type=int, default=0, help="(default: 0)")
    lmms_data.set_defaults(run=run_lmms_data)

    render = commands.add_parser("render", help="write a contact sheet of true pictures")
    render.add_argument("--out", type=Path, default=Path("shapes.png"), metavar="FILE", help="(default: shapes.png)")
    render.add_argument("--seed", type=int, default=0, help="(default: 0)")
    render.add_argument("--size", type=int, default=128, help="of the pictures, in pixels (default: 128)")
    render.add_argument("--new", metavar="NAME", help="with a colour or shape outside the world: brown, ring")
    render.set_defaults(run=run_render)

    train = commands.add_parser("train", help="train the small model from random weights, stage by stage")
    train.add_argument(
        "--stage", default="all", help="autoencoder, decoder, questions, vision, drawing, joint, export, all"
    )
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="a stopped run resumes from here")
    train.add_argument("--workers", type=int, default=0, help="processes that make batches ahead, for a GPU")
    train.set_defaults(run=run_train)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except MobileOError as error:
        print(f"shapes: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shapes: interrupted", file=sys.stderr)
        return 130
    return 0


def run_score(options: argparse.Namespace) -> None:
    from mobileo_mlx import MobileO
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.checkpoints.quantize import parse_quantize

    from ..scoring import OUTPUTS, record
    from .report import ScoreReport
    from .score import TASKS, score_answers, score_drawing, score_edits
    from .world import WORLD

    if options.n < 1:
        raise OptionError("at least 1 sample of each category is needed.")
    if options.new is not None:
        WORLD.extended(options.new)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            check_output(options.out / name)
    model = MobileO.load(
        options.model,
        quantize=parse_quantize(options.quantize) if options.quantize is not None else None,
        adapter=options.adapter,
        adapter_scale=options.adapter_scale,
    )
    drawing: dict[str, Any] = {
        name: value
        for name in ("steps", "guidance_scale", "scheduler")
        if (value := getattr(options, name)) is not None
    }
    tasks = options.only or TASKS
    settings = {"n": options.n, "seed": options.seed, "quantize": options.quantize, **drawing}
    if options.adapter is not None:
        settings |= {"adapter": str(options.adapter), "adapter_scale": options.adapter_scale}
    report = ScoreReport(options.model, settings)

    def scored() -> Iterator[Any]:
        if "draw" in tasks:
            yield from score_drawing(model, options.n, seed=options.seed, new=options.new, options=drawing)
        if "ask" in tasks:
            yield from score_answers(model, options.n, seed=options.seed, new=options.new)
        if "edit" in tasks:
            yield from score_edits(model, options.n, seed=options.seed, options=drawing)

    record(report, scored(), options.out)


def run_quadruplets(options: argparse.Namespace) -> None:
    from .data import write_quadruplets

    path = write_quadruplets(
        options.out,
        options.n,
        seed=options.seed,
        size=options.size,
        edits=options.edits,
        questions=options.questions,
        new=options.new,
        new_share=options.new_share,
    )
    print(path)


def run_geneval_prompts(options: argparse.Namespace) -> None:
    from .geneval import write_prompts

    counts = write_prompts(options.out, options.n, seed=options.seed)
    print(f"{options.out}: {', '.join(f'{tag} {count}' for tag, count in counts.items())}")


def run_pictures(options: argparse.Namespace) -> None:
    from .data import write_pictures

    path = write_pictures(
        options.out,
        options.n,
        seed=options.seed,
        size=options.size,
        edits=options.edits,
        new=options.new,
        new_share=options.new_share,
    )
    print(path)


def run_lmms_data(options: argparse.Namespace) -> None:
    from .lmms_data import write_lmms_data

    print(write_lmms_data(options.out, options.n, seed=options.seed))


def run_render(options: argparse.Namespace) -> None:
    from mobileo_mlx.images import save_png

    from .gallery import gallery
    from .sheet import draw_sheet

    save_png(draw_sheet(gallery(options.seed, options.size, options.new)), options.out, None)
    print(options.out)


def run_train(options: argparse.Namespace) -> None:
    from .recipe.train import recipe

    recipe(options.out, options.workers).run_all(options.stage, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
