"""The paper's table on this machine: `python -m benchmarks.latency --model MODEL`, or `--random-weights`.

Random weights take as long as trained ones, and need no download. There are files for each chip, the GPU's where one
computes: the result is added to the records in latency-CHIP.json, and latency-CHIP.md and latency-CHIP.png show it.
On a GPU a run takes a minute or two, on a CPU half an hour; `--runs 2 --warmup 1` halves that.
Exit status: 0 done, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common
from .common import POSITIONS, PROMPT_TOKENS, Timing

if TYPE_CHECKING:
    from mobileo_mlx import MobileO

STEPS = 20
WARMUP_STEPS = 2  # of a drawing before those that are measured: what there is to compile comes with the first
ANSWER_TOKENS = 64  # over which the speed of decoding is measured
ROWS = ("vision", "first_token", "second_question", "decode", "image", "edit")

# Mobile-O (arXiv 2602.20161), table 6: vision encoder in ms, time to the first token in ms, an image in s; mean and
# standard deviation. "Time to the first token" there is the vision encoder and the forward pass. The spread of
# Janus' image on the MacBook is printed as 15614, which can't be right, and is left out.
Spread = tuple[float, float | None]
PAPER: tuple[tuple[str, str, Spread, Spread, Spread], ...] = (
    ("MacBook M2 Pro", "Janus", (783, 244), (289, 19), (201, None)),
    ("MacBook M2 Pro", "JanusFlow", (1909, 466), (935, 172), (24, 0.8)),
    ("MacBook M2 Pro", "Show-O", (699, 107), (797, 5), (47, 0.2)),
    ("MacBook M2 Pro", "Mobile-O-0.5B", (56, 7), (187, 31), (4, 0.5)),
    ("Jetson Orin Nano", "Janus", (745, 19), (749, 19), (44, 0.8)),
    ("Jetson Orin Nano", "JanusFlow", (741, 27), (745, 27), (22, 0.1)),
    ("Jetson Orin Nano", "Show-O", (403, 4), (720, 14), (52, 4)),
    ("Jetson Orin Nano", "Mobile-O-0.5B", (88, 7), (488, 9), (4, 0.6)),
    ("iPhone 17 Pro", "Mobile-O-0.5B", (102, 4), (248, 10), (3, 0.5)),
)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one task.

    Attributes:
        timing: wall time in seconds, of "decode" the time of one token.
        processor: processor time of the same runs, which other work on the machine changes less.
        peak_memory: bytes that MLX held at most, weights included.
        cache_memory: bytes that its cache held besides after a run; the process may be as large as both.
    """

    name: str
    timing: Timing
    processor: Timing
    peak_memory: int
    cache_memory: int


class Tasks:
    """The six tasks on one model; a run returns by what its time is to be divided."""

    def __init__(self, model: MobileO, *, steps: int = STEPS, size: int | None = None):
        from .synthetic import positions_before_image, prompt_of, question_of

        self.model, self.steps, self.size = model, steps, size
        self._tokenizer = model.tokenizer
        self._seed = 0
        self._prompt = prompt_of(PROMPT_TOKENS, self._tokenizer)
        rest = POSITIONS - model.config.image_tokens - positions_before_image(self._tokenizer)
        self._question = question_of(rest, self._tokenizer)
        self._second = question_of(30, self._tokenizer, first_word="where")

    def prepared(self, name: str, *, steps: int | None = None) -> Callable[[], int]:
        """A run of a task as if it were the first; what it needs is made. Drawing takes so many steps, or all."""
        from .synthetic import random_image

        self.model.parts.cache.clear()
        self._seed += 1
        image = random_image(self.model.config.image_size, self._seed)
        if name == "second_question":
            self._answer(image, self._question)
        if name == "decode":
            return self._decoding()
        return {
            "vision": lambda: self._see(image),
            "first_token": lambda: self._answer(image, self._question),
            "second_question": lambda: self._answer(image, self._second),
            "image": lambda: self._draw(steps or self.steps),
            "edit": lambda: self._edit(image, steps or self.steps),
        }[name]

    def _see(self, image: Any) -> int:
        import mlx.core as mx

        from mobileo_mlx.conditioning import encode_image

        mx.eval(encode_image(self.model.parts, image))
        return 1

    def _answer(self, image: Any, question: str) -> int:
        self.model.ask(image, question, max_tokens=1)
        return 1

    def _draw(self, steps: int) -> int:
        self.model.generate(self._prompt, steps=steps, seed=self._seed, width=self.size, height=self.size)
        return 1

    def _edit(self, image: Any, steps: int) -> int:
        self.model.edit(image, "make it blue", steps=steps, seed=self._seed, width=self.size, height=self.size)
        return 1

    def _decoding(self) -> Callable[[], int]:
        """An answer after its first token. No token ends it: random weights choose one now and then."""
        import mlx.core as mx

        from mobileo_mlx.decoding import decode

        llm = self.model.parts.llm
        tokens = decode(
            llm,
            self.model.parts.lm_head,
            llm.embed_tokens(mx.arange(POSITIONS)[None] % self.model.config.llm.vocab_size),
            llm.make_cache(),
            max_tokens=ANSWER_TOKENS + 1,
        )

        next(tokens)
        return lambda: sum(1 for _ in tokens)


def measure(tasks: Tasks, names: Sequence[str], *, warmup: int, runs: int) -> Iterator[Measurement]:
    """Each task `warmup` times unmeasured, then `runs` times, with no other component in memory than it needs."""
    import mlx.core as mx

    for name in names:
        tasks.model.release()
        wall, processor, peak, cache = [], [], 0, 0
        for i in range(warmup + runs):
            run = tasks.prepared(name, steps=min(WARMUP_STEPS, tasks.steps) if i < warmup else None)
            mx.reset_peak_memory()
            before, begin = time.process_time(), time.perf_counter()
            units = run()
            seconds, cpu = time.perf_counter() - begin, time.process_time() - before
            if i >= warmup:
                wall.append(seconds / units)
                processor.append(cpu / units)
                peak, cache = max(peak, mx.get_peak_memory()), max(cache, mx.get_cache_memory())
        yield Measurement(name, Timing(tuple(wall)), Timing(tuple(processor)), peak, cache)


def result(rows: Sequence[Measurement], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured, ready for JSON; times in seconds."""
    return {
        "machine": common.machine(),
        **settings,
        "rows": [
            {
                "name": row.name,
                "seconds": row.timing.to_dict(),
                "processor_seconds": row.processor.to_dict(),
                "peak_memory_gb": row.peak_memory / 1e9,
                "cache_memory_gb": row.cache_memory / 1e9,
            }
            for row in rows
        ],
    }


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """The paper's table with our row in it, then all that was measured."""
    rows = {row["name"]: row for row in value["rows"]}
    ours = f"mobileo-mlx, {value['model']}"
    head = ("model", "machine", "vision encoder, ms", "first token, ms", "image, s")
    paper = [
        [model, machine, _spread(vision, 1), _spread(first, 1), _spread(image, 1)]
        for machine, model, vision, first, image in PAPER
    ]
    cells = [_measured(rows, "vision", 1e3), _measured(rows, "first_token", 1e3), _measured(rows, "image", 1)]
    yield from common.markdown_table(head, [*paper, [ours, common.computing_chip(value["machine"]), *cells]])
    yield ""
    units = {"image": 1.0, "edit": 1.0}
    names = {
        "vision": "vision encoder and projector",
        "first_token": f"first token, {POSITIONS} positions",
        "second_question": "second question on the same image",
        "decode": "decoding, a token",
        "image": f"an image, {value['steps']} steps",
        "edit": f"an edit, {value['steps']} steps",
    }
    table = []
    for name, row in rows.items():
        factor, unit = (units[name], "s") if name in units else (1e3, "ms")
        seconds, processor = row["seconds"], row["processor_seconds"]
        speed = f", {1 / seconds['mean']:.1f} tokens/s" if name == "decode" else ""
        table.append([
            names[name],
            _spread((seconds["mean"] * factor, seconds["std"] * factor), unit=unit) + speed,
            f"{_number(processor['mean'] * factor)} {unit}",
            f"{row['peak_memory_gb']:.3g} GB"
            + (f" + {cache:.3g} GB cache" if (cache := row.get("cache_memory_gb")) else ""),
        ])  # fmt: skip
    yield from common.markdown_table(("here", "wall time", "processor time", "peak memory"), table)
    yield ""
    bits = value["quantize"] or "none"
    yield (
        f"{common.machine_line(value['machine'])}; dtype {value['dtype']}, quantized: {bits}; mean and standard "
        f"deviation of {value['runs']} runs after {value['warmup']} to warm up (drawings of {WARMUP_STEPS} steps). "
        "The paper's rows are from arXiv 2602.20161, table 6, on other machines than ours where the names differ."
    )


def chart(value: Mapping[str, Any], path: Path) -> None:
    """The table as bars."""
    from .charts import available, bar_chart

    if not available(path):
        return

    rows = {row["name"]: row["seconds"]["mean"] for row in value["rows"]}
    ours = f"mobileo-mlx, {common.computing_chip(value['machine'])}"
    panels: dict[str, list[tuple[str, float]]] = {}
    columns = (("vision", "Vision encoder, ms", 1e3), ("first_token", "First token, ms", 1e3), ("image", "Image, s", 1))
    for i, (name, title, factor) in enumerate(columns):
        if name in rows:
            bars = [(f"{model}, {machine}", spreads[i][0]) for machine, model, *spreads in PAPER]
            panels[f"{title} (logarithmic)"] = [*bars, (ours, rows[name] * factor)]
    if panels:  # the table has no column for the other rows
        bar_chart(panels, path, ours=ours)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The results in a file of `common.chip_file`, the newest last.

    Raises:
        CheckpointError: it is missing, or has no results.
    """
    from mobileo_mlx.errors import CheckpointError

    records = common.read_json(path).get("records")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise CheckpointError(f"'{path}' has no records of benchmarks.latency; move it away.")
    return records


def _measured(rows: Mapping[str, Any], name: str, factor: float) -> str:
    if name not in rows:
        return "not measured"
    seconds = rows[name]["seconds"]
    return _spread((seconds["mean"] * factor, seconds["std"] * factor))


def _spread(value: Spread, factor: float = 1, unit: str = "") -> str:
    mean, std = value
    text = _number(mean * factor) + (f" +- {_number(std * factor, 3)}" if std is not None else "")
    return f"{text} {unit}".rstrip()


def _number(value: float, digits: int = 4) -> str:
    """With so many digits, and never as a power of ten."""
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a bundled name, a folder, or a repository on the hub")
    what.add_argument(
        "--random-weights", action="store_true", help="the published configuration; nothing is downloaded"
    )
    parser.add_argument("--size", default="0.5b", help="of the random weights: 0.5b or 1.5b (default: 0.5b)")
    parser.add_argument("--pixels", type=int, help="sides of the image that is drawn, in place of the default")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of drawing and editing (default: {STEPS})")
    parser.add_argument("--runs", type=int, default=5, help="that are measured (default: 5)")
    parser.add_argument("--warmup", type=int, default=2, help="runs before them (default: 2)")
    parser.add_argument("--only", action="append", choices=ROWS, help="one row; repeatable")
    parser.add_argument("--dtype", help="such as float16 or dit=float16,vae=float32, in place of the default")
    parser.add_argument("--quantize", metavar="BITS", help="such as all=8 or llm=4,dit=8, while loading")
    common.add_out(parser)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.latency", *(sys.argv[1:] if arguments is None else arguments)])
    return common.exit_status("latency", lambda: _run(options, command))


def _run(options: argparse.Namespace, command: str) -> None:
    from mobileo_mlx import MobileO
    from mobileo_mlx.checkpoints.quantize import parse_quantize
    from mobileo_mlx.errors import OptionError

    from .synthetic import official_config, published_size, synthetic_model

    if options.runs < 1 or options.warmup < 0:
        raise OptionError("at least 1 run is needed, and 0 or more to warm up.")
    quantize = parse_quantize(options.quantize) if options.quantize is not None else None
    if options.random_weights:
        model = synthetic_model(official_config(options.size), dtype=options.dtype, quantize=quantize)
        name = f"{options.size.upper()} with random weights"
    else:
        model = MobileO.load(options.model, dtype=options.dtype, quantize=quantize, progress=True)
        name = options.model
    rows = []
    names = [row for row in ROWS if row in (options.only or ROWS)]
    tasks = Tasks(model, steps=options.steps, size=options.pixels)
    for row in measure(tasks, names, warmup=options.warmup, runs=options.runs):
        common.say(f"{row.name}: {row.timing.mean:.4g} s +- {row.timing.std:.2g}, peak {row.peak_memory / 1e9:.2f} GB")
        rows.append(row)
    settings = {
        "model": name,
        "size": published_size(model.config),
        "pixels": options.pixels or model.default_size[0],
        "steps": options.steps,
        "dtype": _dtype(model, names),
        "quantize": options.quantize,
        "warmup": options.warmup,
        "runs": options.runs,
    }
    value = {**result(rows, settings), "command": command}
    lines = list(markdown(value))
    print("\n".join(lines))
    path = common.chip_file(options.out, "latency", value["machine"])
    records = read_records(path) if path.exists() else []
    common.write_json({"records": [*records, value]}, path)
    common.write_lines(lines, path.with_suffix(".md"))
    chart(value, path.with_suffix(".png"))


def _dtype(model: MobileO, names: Sequence[str]) -> str:
    """What the networks that ran compute in; each by name where they differ."""
    from mobileo_mlx.checkpoints.precision import dtype_name
    from mobileo_mlx.models.mobileo import COMPONENTS

    used: set[str] = set()
    if set(names) - {"image", "decode"}:
        used |= {"vision_tower", "mm_projector"}
    if set(names) - {"vision"}:
        used |= {"llm"}
    if set(names) & {"first_token", "second_question", "decode"}:
        used |= {"lm_head"}
    if set(names) & {"image", "edit"}:
        used |= {"diffusion_connector", "dit", "vae_decoder"}
    dtypes = {name: dtype_name(model.parts.dtype(name)) for name in COMPONENTS if name in used}
    if len(set(dtypes.values())) == 1:
        return next(iter(dtypes.values()))
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())


if __name__ == "__main__":
    sys.exit(main())
