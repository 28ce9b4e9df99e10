"""How cost grows: `python -m benchmarks.growth`.

Time and memory of a denoising step and of the decoder against the size of the image, of a step against the number of
images in a batch, and of the first token against the prompt's length and the number of images; each with the exponent
b of cost = a n^b that fits best (1 is linear). Attention among the words of a prompt is quadratic by nature, so that
the first token's time is split into c + a n + b n^2 as well. Random weights at the published widths, with fewer layers
unless --full is given.
Processor time on a CPU with one thread, wall time on a GPU. Writes growth.json, growth.md and growth.png.
Exit status: 0 done, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common

if TYPE_CHECKING:
    from mobileo_mlx import MobileO
    from mobileo_mlx.models.mobileo import MobileOConfig

SIZES = (512, 768, 1024, 1536, 2048)
BATCHES = (1, 2, 4, 8)
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
IMAGES = (1, 2, 4)
SERIES = ("step", "decoder", "batch", "length", "images")
TITLES = {
    "step": ("denoising step by image size", "latent tokens"),
    "decoder": ("decoder by image size", "latent tokens"),
    "batch": ("denoising step by batch", "images in the batch"),
    "length": ("first token by prompt length", "positions"),
    "images": ("first token by images", "images"),
}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        n: what the cost grows with, as in `TITLES`.
        memory: bytes at most above what was held before, which is the weights.
    """

    label: str
    n: float
    seconds: float
    memory: int


Job = Callable[[], object]
Prepared = tuple[str, float, Callable[[], Job]]  # label, n, and what makes a job ready


def step_by_size(model: MobileO, sizes: Sequence[int]) -> Iterator[Prepared]:
    """For each size the second step of a drawing; the first one computes what depends on the text alone."""
    for size in sizes:
        yield f"{size} px", (size // model.config.vae.factor) ** 2, partial(_second_step, model, size, 1)


def step_by_batch(model: MobileO, batches: Sequence[int]) -> Iterator[Prepared]:
    for batch in batches:
        yield str(batch), batch, partial(_second_step, model, model.default_size[0], batch)


def decoder_by_size(model: MobileO, sizes: Sequence[int]) -> Iterator[Prepared]:
    import mlx.core as mx

    from mobileo_mlx.latents import decode_latents

    def prepared(side: int) -> Job:
        latents = mx.random.normal((1, side, side, model.config.vae.latent_channels), key=mx.random.key(0))
        return lambda: mx.eval(decode_latents(model.parts, latents))

    for size in sizes:
        side = size // model.config.vae.factor
        yield f"{size} px", side**2, partial(prepared, side)


def token_by_length(model: MobileO, lengths: Sequence[int]) -> Iterator[Prepared]:
    import mlx.core as mx

    from mobileo_mlx.decoding import decode

    def prepared(length: int) -> Job:
        llm, head = model.parts.llm, model.parts.lm_head
        ids = mx.arange(length)[None] % model.config.llm.vocab_size
        return lambda: next(decode(llm, head, llm.embed_tokens(ids), llm.make_cache(), max_tokens=1))

    for length in lengths:
        yield str(length), length, partial(prepared, length)


def token_by_images(model: MobileO, counts: Sequence[int]) -> Iterator[Prepared]:
    from .synthetic import random_image

    seed = 0

    def prepared(count: int) -> Job:
        nonlocal seed  # new images each time, so that no cache can help
        for name in ("vision_tower", "mm_projector", "llm", "lm_head"):
            model.parts[name]  # before the job, whose memory does not count weights
        seed += count
        images = [random_image(model.config.image_size, seed + i) for i in range(count)]
        return lambda: model.ask(images, "what is different?", max_tokens=1)

    for count in counts:
        yield str(count), count, partial(prepared, count)


def _second_step(model: MobileO, size: int, batch: int) -> Job:
    from .synthetic import prompt_of

    prompt = prompt_of(common.PROMPT_TOKENS, model.tokenizer)
    stream = model.stream_generate(prompt, seed=range(batch), width=size, height=size)
    next(stream)
    return lambda: next(stream)


def measured(points: Iterable[Prepared], *, runs: int, limit: float) -> Iterator[Point | str]:
    """Points in the order of their n, and a sentence in place of what would take too long or too much memory.

    Both are estimated from the point before: four times the tokens, four times the cost.
    """
    import mlx.core as mx

    clock = time.process_time if mx.default_device() == mx.cpu else time.perf_counter
    last: Point | None = None
    for label, n, prepare in points:
        if last is not None:
            seconds, memory = (n / last.n * value for value in (last.seconds, last.memory))
            if seconds > limit or memory > 0.5 * _memory():
                yield f"{label} left out: it would take about {seconds:.0f} s and {memory / 1e9:.1f} GB"
                continue
        times, peak = [], 0
        for i in range(runs + 1):
            job = prepare()
            held = mx.get_active_memory()
            mx.reset_peak_memory()
            seconds = common.timed(job, clock)
            if i > 0 or seconds > 30:  # the first run compiles; where it is long, that is nothing
                times.append(seconds)
            peak = max(peak, mx.get_peak_memory() - held)
            del job
            mx.clear_cache()
            if seconds > 30:
                break
        last = Point(label, n, statistics.median(times), peak)
        yield last


def same_alone(model: MobileO, batch: int) -> float:
    """The largest difference of a seed's latents in a batch and alone, relative to the largest value."""
    import mlx.core as mx

    from mobileo_mlx import GenerationStep

    def latents(seeds: Sequence[int]) -> mx.array:
        step = next(model.stream_generate("a", seed=seeds))
        assert isinstance(step, GenerationStep)
        return step.latents[-1]

    together, alone = latents(range(batch)), latents([batch - 1])
    return float(mx.abs(together - alone).max() / mx.abs(alone).max())


def fewer_layers(config: MobileOConfig) -> MobileOConfig:
    """The published widths with two blocks in the DiT, four in the language model, and one a stage elsewhere."""
    from .synthetic import with_layers

    ones = (1,) * len(config.vae.decoder_layers_per_block)
    return dataclasses.replace(
        with_layers(with_layers(config, 2), 4, llm=True),
        vision_tower=dataclasses.replace(config.vision_tower, layers=(1,) * len(config.vision_tower.layers)),
        vae=dataclasses.replace(config.vae, decoder_layers_per_block=ones),
    )


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def polynomial(points: Sequence[Point]) -> list[float]:
    """c, a and b, none of them negative, of seconds = c + a n + b n^2 with the least squares of relative errors."""
    import numpy as np

    columns = np.array([[n**k for k in range(3)] for n in (point.n for point in points)])
    relative = columns / np.array([[point.seconds] for point in points])
    best, least = [0.0, 0.0, 0.0], math.inf
    # Three coefficients: every choice of those that are not 0 can be tried.
    for chosen in ([k for k in range(3) if mask >> k & 1] for mask in range(1, 8)):
        found = np.linalg.lstsq(relative[:, chosen], np.ones(len(points)), rcond=None)[0]
        error = float(((relative[:, chosen] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least:
            best, least = [0.0, 0.0, 0.0], error
            for k, value in zip(chosen, found, strict=True):
                best[k] = float(value)
    return best


def summary(name: str, points: Sequence[Point], notes: Sequence[str]) -> dict[str, Any]:
    """One series for JSON, with its exponents where there are two points or more."""
    several = len(points) > 1
    ns = [point.n for point in points]
    return {
        "name": name,
        "points": [vars(point) for point in points],
        "time_exponent": common.fitted_exponent(ns, [p.seconds for p in points]) if several else None,
        "memory_exponent": common.fitted_exponent(ns, [max(1, p.memory) for p in points]) if several else None,
        "polynomial": polynomial(points) if len(points) > 3 and name == "length" else None,
        "notes": list(notes),
    }


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """A table for each series."""
    for series in value["series"]:
        title, what = TITLES[series["name"]]
        rows = [
            [
                point["label"],
                f"{point['n']:g}",
                f"{point['seconds']:.4g}",
                f"{point['memory'] / 1e6:.0f}",
                f"{1e3 * point['seconds'] / point['n']:.4g}",
            ]
            for point in series["points"]
        ]
        yield from common.markdown_table((title, what, "s", "MB above the weights", f"ms of each of the {what}"), rows)
        if series["time_exponent"] is not None:
            yield ""
            yield f"Exponents: time {series['time_exponent']:.2f}, memory {series['memory_exponent']:.2f}."
        if series["polynomial"] is not None:
            constant, linear, square = series["polynomial"]
            largest = series["points"][-1]
            formula = f"{constant:.3g} s + {1e3 * linear:.3g} ms n + {1e9 * square:.3g} ns n^2"
            share = square * largest["n"] ** 2 / (constant + linear * largest["n"] + square * largest["n"] ** 2)
            yield f"Time: {formula}; attention's square is {share:.0%} of it at n = {largest['n']:g}."
        yield from (f"{note}." for note in series["notes"])
        yield ""
    layers = "all layers" if value["full"] else "fewer layers than the published model, its widths"
    yield f"{common.machine_line(value['machine'])}; {layers}, {value['clock']}, median of {value['runs']}."


def chart(value: Mapping[str, Any], path: Path) -> None:
    """Time on the left and memory on the right, with a line that is linear for comparison."""
    from .charts import available, curves

    if not available(path):
        return

    panels = []
    for series in (series for series in value["series"] if series["points"]):
        title, what = TITLES[series["name"]]
        for key, unit, label in (("seconds", 1.0, "seconds"), ("memory", 1e6, "MB above the weights")):
            points = [(point["n"], max(point[key] / unit, 1e-6)) for point in series["points"]]  # a logarithm's
            start = points[0]
            linear = [(n, start[1] * n / start[0]) for n, _ in points]
            panels.append((title, what, label, {"measured": points, "linear": linear}))
    if panels:
        curves(panels, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--size", default="0.5b", help="of the published checkpoint: 0.5b or 1.5b (default: 0.5b)")
    parser.add_argument("--only", action="append", choices=SERIES, help="one series; repeatable")
    parser.add_argument(
        "--sizes", default=",".join(map(str, SIZES)), help="sides of images in pixels (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="all layers; hours on a CPU")
    parser.add_argument("--tiny", action="store_true", help="a tiny configuration, to try this out")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts (default: 3)")
    parser.add_argument("--limit", type=float, default=300, help="seconds that one run may take (default: 300)")
    common.add_out(parser)
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("growth", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    import mlx.core as mx

    from mobileo_mlx.errors import OptionError

    from .synthetic import official_config, synthetic_model, tiny_config

    if options.runs < 1:
        raise OptionError("at least 1 run is needed.")
    config = tiny_config() if options.tiny else official_config(options.size)
    sizes = _sizes(options.sizes, config.size_multiple)
    model = synthetic_model(config if options.full or options.tiny else fewer_layers(config))
    lengths = [length for length in LENGTHS if length < config.llm.max_position_embeddings]
    jobs = {
        "step": step_by_size(model, sizes),
        "decoder": decoder_by_size(model, sizes),
        "batch": step_by_batch(model, BATCHES),
        "length": token_by_length(model, lengths),
        "images": token_by_images(model, IMAGES),
    }
    series = []
    for name in (name for name in SERIES if name in (options.only or SERIES)):
        points: list[Point] = []
        notes: list[str] = []
        for found in measured(jobs[name], runs=options.runs, limit=options.limit):
            if isinstance(found, Point):
                points.append(found)
                common.say(f"{name} {found.label}: {found.seconds:.4g} s, {found.memory / 1e6:.0f} MB")
            else:
                notes.append(found)
                common.say(f"{name} {found}")
        entry = summary(name, points, notes)
        if name == "batch":
            difference = same_alone(model, BATCHES[-1])
            entry["difference"] = difference
            note = f"A seed in a batch of {BATCHES[-1]} and alone: relative difference {difference:.1e} after a step"
            entry["notes"].append(note)
        series.append(entry)
        model.release()
    value = {
        "machine": common.machine(),
        "size": None if options.tiny else options.size.lower(),
        "full": options.full,
        "runs": options.runs,
        "clock": "processor time, one thread" if mx.default_device() == mx.cpu else "wall time",
        "series": series,
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, options.out / "growth.json")
    common.write_lines(lines, options.out / "growth.md")
    chart(value, options.out / "growth.png")


def _sizes(text: str, multiple: int) -> list[int]:
    from mobileo_mlx.errors import OptionError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 and int(part) % multiple == 0 for part in parts):
        raise OptionError(f"sizes {text!r} are not possible; give multiples of {multiple} with commas between them.")
    return sorted(map(int, parts))


if __name__ == "__main__":
    sys.exit(main())
