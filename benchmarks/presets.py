"""What the presets cost: `python -m benchmarks.presets --model tiny --n 1000`.

Every preset beside the default (20 steps of DPM-Solver++, guidance in all of them, weights as they are stored): the
same prompts, edits and questions of the shapes world, the same seeds, judged by the same reader of pictures. For each
how often it is right, the difference in points with its 95 % interval, what only one of the two had right, passes of
the diffusion transformer, and processor time per sample on one thread. A preset of drawing may lose a point at most:
where the lower end of an interval is below -1 it is not to be offered.
Writes presets.json and presets.md, and each sample to presets-samples-*.jsonl, from where a stopped run goes on.
Exit status: 0 done, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common

if TYPE_CHECKING:
    from mobileo_mlx import GenerationResult, MobileO

LOSS = -1.0  # points that a preset of drawing may lose
TITLES = {"draw": "drawings", "edit": "edits", "ask": "questions"}
DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """A way to run the model: a preset, or the default.

    Attributes:
        drawing: options of `MobileO.generate` and `MobileO.edit`.
        bits: by component.
    """

    name: str
    drawing: Mapping[str, Any] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What became of one sample: right or not, passes of the diffusion transformer, seconds of processor time."""

    right: bool
    passes: int
    seconds: float


Found = dict[str, dict[str, list[Sample]]]  # by task and variant, in the order of the samples


def variants(names: Sequence[str] | None = None) -> list[Variant]:
    """The default and the presets of these names, all of them by default.

    Raises:
        OptionError: an unknown name.
    """
    from mobileo_mlx.drawing import SAMPLING_PRESETS
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.quantize import PRESETS

    known = [Variant(name, drawing=dict(options)) for name, options in SAMPLING_PRESETS.items()]
    known += [Variant(name, bits=bits) for name, bits in PRESETS.items() if bits]
    by_name = {variant.name: variant for variant in known}
    if unknown := [name for name in names or () if name not in by_name]:
        raise OptionError(f"there is no preset {unknown[0]!r} to measure; there are {', '.join(by_name)}.")
    return [Variant(DEFAULT), *(by_name[name] for name in names or by_name)]


def difference(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """How much more often the second of two is right on the same samples, with the 95 % interval, as shares.

    Newcombe's method 10 for paired proportions (Statistics in Medicine 17, 1998): Wilson's intervals of both, joined
    with their correlation, whose numerator is corrected for continuity.

    Args:
        both, first, second, neither: on how many samples both were right, only the first, only the second, or none.
    """
    from .shapes.report import wilson

    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = wilson(both + first, n), wilson(both + second, n)
    product = math.prod((both + first, second + neither, both + second, first + neither))
    covariance = both * neither - first * second
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(product) if product else 0.0

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return p2 - p1, p2 - p1 - joined(p2 - low2, high1 - p1), p2 - p1 + joined(high2 - p2, p1 - low1)


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p of as unequal a split of the samples on which just one was right, were both as good."""
    n, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def measured(
    model_name: str,
    chosen: Sequence[Variant],
    counts: Mapping[str, int],
    seed: int,
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> Found:
    """Runs samples through every variant; of each task those whose index is `share[0]` modulo `share[1]`.

    Args:
        model_name: what `MobileO.load` takes.
        chosen: see `variants`.
        counts: of samples, by task.
        seed: of all samples and of their noise; each has its own, whatever the counts and the share are.
        folder: of the samples that are kept; what an earlier run has left there is not measured again.
    """
    import numpy as np

    from mobileo_mlx import MobileO

    models = {str(variant.bits): MobileO.load(model_name, quantize=dict(variant.bits)) for variant in chosen}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"presets-samples-{share[0]}-of-{share[1]}.jsonl"
    kept, warm = _kept(path), set[tuple[str, str]]()
    found: Found = {}
    for task, count in counts.items():
        changed = [variant for variant in chosen if task != "ask" or not variant.drawing]
        found[task] = {variant.name: [] for variant in changed}
        indices = range(share[0], count, share[1])
        for done, index in enumerate(indices):
            for variant in changed:
                model = models[str(variant.bits)]
                run = partial(_RUN[task], model, index, variant.drawing)
                rng = [seed, zlib.crc32(task.encode()), index]
                key = json.dumps([model_name, dict(variant.drawing), dict(variant.bits), task, rng])
                if key not in kept:
                    if (task, variant.name) not in warm:
                        run(np.random.default_rng(rng))  # kernels are compiled, weights read
                        warm.add((task, variant.name))
                    model.recall.clear()  # what one variant has read, another would not have to
                    kept[key] = run(np.random.default_rng(rng))
                    with path.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps([key, *vars(kept[key]).values()]) + "\n")
                found[task][variant.name].append(kept[key])
            if (done + 1) % 50 == 0 or done + 1 == len(indices):
                common.say(_progress(task, done + 1, len(indices), found[task]))
    return found


def _kept(path: Path) -> dict[str, Sample]:
    """The samples of an earlier run; a line that was torn when it was stopped is left out."""
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            key, right, passes, seconds = json.loads(line)
        except ValueError:
            continue
        kept[key] = Sample(right, passes, seconds)
    return kept


def _progress(task: str, done: int, of: int, found: Mapping[str, Sequence[Sample]]) -> str:
    told = []
    for name, samples in found.items():
        pairs = [(a.right, b.right) for a, b in zip(found[DEFAULT], samples, strict=True)]
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        told.append(f"{name} {sum(sample.right for sample in samples)} (-{lost} +{won})")
    return f"{TITLES[task]} {done}/{of}: {', '.join(told)}"


def _draw(model: MobileO, index: int, options: Mapping[str, Any], rng: Any) -> Sample:
    from .shapes.score import caption_samplers
    from .shapes.scorer import read_picture, satisfies

    samplers = list(caption_samplers().values())
    caption = samplers[index % len(samplers)](rng)
    seed = int(rng.integers(2**32))
    result, seconds = _timed(lambda: model.generate(caption.text, seed=seed, **options))
    return Sample(satisfies(read_picture(_pixels(result)), caption.spec), passes(model, result), seconds)


def _edit(model: MobileO, index: int, options: Mapping[str, Any], rng: Any) -> Sample:
    from PIL import Image

    from .shapes.edits import EDIT_TYPES, sample_edit
    from .shapes.scorer import edit_succeeded, read_picture
    from .shapes.world import render

    edit = sample_edit(rng, EDIT_TYPES[index % len(EDIT_TYPES)])
    before = Image.fromarray(render(edit.before, model.default_size[0]))
    seed = int(rng.integers(2**32))
    result, seconds = _timed(lambda: model.edit(before, edit.text, seed=seed, **options))
    return Sample(edit_succeeded(read_picture(_pixels(result)), edit), passes(model, result), seconds)


def _ask(model: MobileO, index: int, options: Mapping[str, Any], rng: Any) -> Sample:
    from PIL import Image

    from .shapes.questions import QUESTION_TYPES, sample_question
    from .shapes.score import MAX_TOKENS
    from .shapes.world import render

    question = sample_question(rng, QUESTION_TYPES[index % len(QUESTION_TYPES)])
    image = Image.fromarray(render(question.scene, model.default_size[0]))
    answer, seconds = _timed(lambda: model.ask(image, question.text, max_tokens=MAX_TOKENS))
    return Sample(answer.text.lower().strip().rstrip(".") in question.accepted, 0, seconds)


_RUN: Mapping[str, Callable[..., Sample]] = {"draw": _draw, "edit": _edit, "ask": _ask}


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.process_time()
    result = run()
    return result, time.process_time() - begin


def _pixels(result: GenerationResult) -> Any:
    import numpy as np

    return np.asarray(result.images[0].convert("RGB"))


def passes(model: MobileO, result: GenerationResult) -> int:
    """Passes of the diffusion transformer in a drawing: one a step, two where it is guided."""
    from mobileo_mlx.diffusion import guided_steps
    from mobileo_mlx.drawing import plan_steps

    scheduler, start = plan_steps(model.config, result)
    return sum(
        1 + guided for guided in guided_steps(scheduler, result.guidance_scale, result.guidance_interval)[start:]
    )


def rows(found: Found, chosen: Sequence[Variant]) -> Iterator[dict[str, Any]]:
    """A row for each task and variant that changes it, in points and seconds."""
    for task, by_name in found.items():
        default = by_name[DEFAULT]
        for variant in (variant for variant in chosen if variant.name in by_name):
            samples = by_name[variant.name]
            pairs = [(a.right, b.right) for a, b in zip(default, samples, strict=True)]
            seconds = [statistics.fmean(sample.seconds for sample in some) for some in (default, samples)]
            row: dict[str, Any] = {
                "task": task,
                "preset": variant.name,
                "settings": {**variant.drawing, **({"bits": dict(variant.bits)} if variant.bits else {})},
                "n": len(samples),
                "right": sum(sample.right for sample in samples),
                "passes": statistics.fmean(sample.passes for sample in samples),
                "seconds": seconds[1],
                "speed": seconds[0] / seconds[1],
            }
            if variant.name != DEFAULT:
                lost, won = pairs.count((True, False)), pairs.count((False, True))
                shares = difference(pairs.count((True, True)), lost, won, pairs.count((False, False)))
                names = ("difference", "low", "high")
                row |= {name: 100 * share for name, share in zip(names, shares, strict=True)}
                row |= {"lost": lost, "won": won, "p": mcnemar(lost, won)}
                row["offered"] = row["low"] >= LOSS if variant.drawing else None
            yield row


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """The table, and what its columns mean."""
    head = ("what", "n", "right", "difference", "95 % interval", "lost", "won", "passes", "seconds", "speed")
    cells = []
    for row in value["rows"]:
        paired = "difference" in row
        cells.append(
            (
                f"{TITLES[row['task']]}, {row['preset']}",
                str(row["n"]),
                f"{100 * row['right'] / row['n']:.1f} %",
                f"{row['difference']:+.2f}" if paired else "",
                f"{row['low']:+.2f} to {row['high']:+.2f}" if paired else "",
                str(row["lost"]) if paired else "",
                str(row["won"]) if paired else "",
                f"{row['passes']:g}" if row["passes"] else "",
                f"{row['seconds']:.3f}",
                f"{row['speed']:.2f}",
            )
        )
    yield from common.markdown_table(head, cells)
    yield ""
    yield (
        f"Model {value['model']}, seed {value['seed']}. Differences from the default on the same samples, in points, "
        "by Newcombe's interval for paired proportions; lost: right by default alone, won: right with the preset "
        "alone. Seconds of processor time per sample on one thread."
    )
    yield ""
    for name, options in value["presets"].items():
        yield f"- {name}: {', '.join(f'{key} {told}' for key, told in options.items())}"
    yield ""
    yield common.machine_line(value["machine"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="one that knows the shapes world (default: tiny)")
    parser.add_argument("--n", type=int, default=1000, help="drawings (default: 1000)")
    parser.add_argument("--edits", type=int, help="(default: half as many as drawings)")
    parser.add_argument("--questions", type=int, help="(default: as many as edits)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and noise (default: 0)")
    parser.add_argument("--only", action="append", metavar="PRESET", help="a preset; repeatable")
    parser.add_argument("--processes", type=int, default=1, help="that share the samples (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=common.RESULTS, metavar="DIR", help=f"for the results (default: {common.RESULTS})"
    )
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("presets", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from mobileo_mlx.errors import OptionError

    edits = max(1, options.n // 2) if options.edits is None else options.edits
    questions = edits if options.questions is None else options.questions
    if options.n < 1 or edits < 0 or questions < 0 or options.processes < 1:
        raise OptionError("at least 1 drawing and 1 process are needed.")
    counts = {name: count for name, count in (("draw", options.n), ("edit", edits), ("ask", questions)) if count}
    chosen = variants(options.only)
    work = partial(measured, options.model, chosen, counts, options.seed, options.out)
    if options.processes == 1:
        parts = [work()]
    else:
        # MLX does not survive a fork.
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(work, [(i, options.processes) for i in range(options.processes)]))
    found = {
        task: {name: [sample for part in parts for sample in part[task][name]] for name in parts[0][task]}
        for task in counts
    }
    value = {
        "machine": common.machine(),
        "model": options.model,
        "seed": options.seed,
        "presets": {v.name: {**v.drawing, **v.bits} for v in chosen if v.name != DEFAULT},
        "rows": list(rows(found, chosen)),
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, options.out / "presets.json")
    common.write_lines(lines, options.out / "presets.md")


if __name__ == "__main__":
    sys.exit(main())
