"""What the hardware allows at best: `python -m benchmarks.roofline [--latency FILE]`.

Operations and bytes of each stage are read off the graph of the production code at any size, without computing
anything; the floor on a chip is the longer of computing at its peak and of moving the bytes at its bandwidth. Given a
latency-CHIP.json, the share of that floor's speed that was reached. Writes roofline.json and roofline.md.
Exit status: 0 done, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common
from .latency import read_records

if TYPE_CHECKING:
    from mobileo_mlx.models.mobileo import MobileOConfig

    from .op_counter import Count

STEPS = 20
FEW_STEPS = 4  # of a student of `finetune --objective consistency`, which takes no guidance
ACTIVATION_BYTES = 2  # float16 or bfloat16
GROUP_BYTES = 4 / 64  # of a quantized weight: a scale and a bias in half precision for each 64


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Attributes:
        tflops: peak of matrix products in float16, in 10^12 operations a second.
        bandwidth: of the memory, in 10^9 bytes a second.
    """

    name: str
    tflops: float
    bandwidth: float
    source: str


_HUGGINGFACE = "huggingface.js, table of hardware (pull request 1044)"
_TZAKHARKO = "tzakharko.github.io/apple-neural-accelerators-benchmark"
CHIPS = (
    Chip("M1 8c", 2.6, 68, "Apple's specification"),
    Chip("M2 Pro 16c", 5.7, 200, f"{_HUGGINGFACE}, scaled from 19 cores"),
    Chip("M2 Pro 19c", 6.8, 200, _HUGGINGFACE),
    Chip("M3 Max 40c", 14.2, 400, _HUGGINGFACE),
    Chip("M4 Max 40c", 18.4, 546, f"{_HUGGINGFACE}; bandwidth: Apple"),
    Chip("M5 10c", 16.4, 153, f"{_TZAKHARKO} (1024 operations a core and clock); bandwidth: Apple"),
    Chip("A19 Pro 6c", 9.0, 76.8, f"{_TZAKHARKO} (7.5 measured on 5 cores)"),
)


@dataclass(frozen=True)
class Work:
    """One part of the work.

    Attributes:
        activations: bytes, every product and convolution reading its inputs and writing its output once.
    """

    name: str
    flops: float
    weights: float
    activations: float

    @property
    def bytes(self) -> float:
        return self.weights + self.activations

    def floor(self, chip: Chip) -> tuple[float, str]:
        """Seconds at least, and whether "compute" or "memory" asks for them."""
        compute, memory = self.flops / (chip.tflops * 1e12), self.bytes / (chip.bandwidth * 1e9)
        return (compute, "compute") if compute >= memory else (memory, "memory")


def stages(config: MobileOConfig, *, pixels: int | None = None, bits: Mapping[str, int] | None = None) -> list[Work]:
    """All stages.

    Args:
        pixels: sides of the image that is drawn, the model's default where None.
        bits: of the weights by component, 16 where it has none.
    """
    from . import flops
    from .op_counter import trace

    begun = trace(config, flops.drawing(config, 1, pixels))
    step = flops.dit_step(config, size=pixels)
    understood, prefill = flops.understanding(config), flops.prefill(config)
    counts = {
        "vision": understood - prefill,
        "prefill": prefill,
        "second_question": flops.second_question(config),
        "decode": flops.token(config),
        "text": begun - step,
        "dit": step,
        "dit_alone": flops.dit_step(config, size=pixels, guidance_scale=1.0),
        "decoder": flops.decoder(config, size=pixels),
    }
    return [_work(name, count, bits or {}) for name, count in counts.items()]


def _work(name: str, count: Count, bits: Mapping[str, int]) -> Work:
    def size(component: str) -> float:
        return bits[component] / 8 + GROUP_BYTES if component in bits else 2

    weights = sum(elements * size(component) for component, elements in count.weights().items())
    return Work(name, count.flops, weights, count.activations * ACTIVATION_BYTES)


def floors(parts: Sequence[Work], chip: Chip, steps: int = STEPS) -> dict[str, tuple[float, str]]:
    """Seconds at least and what bounds them, by stage and by the rows of a result of benchmarks.latency."""
    alone = {stage.name: stage.floor(chip) for stage in parts}
    image = alone["text"][0] + steps * alone["dit"][0] + alone["decoder"][0]
    few = alone["text"][0] + FEW_STEPS * alone["dit_alone"][0] + alone["decoder"][0]
    first = alone["vision"][0] + alone["prefill"][0]
    return alone | {"first_token": (first, "compute"), "image": (image, "compute"), "few_steps": (few, "compute")}


TITLES = {
    "vision": "vision tower and projector",
    "prefill": "prefill of 300 positions",
    "second_question": "second question on the same image",
    "decode": "a token",
    "text": "text of a drawing, once",
    "dit": "DiT step with guidance",
    "dit_alone": "DiT step without guidance",
    "decoder": "decoder",
    "first_token": "first token: vision and prefill",
    "image": "an image",
    "few_steps": f"an image, {FEW_STEPS} steps without guidance",
}


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """Stages, floors by chip, and what was reached."""
    yield f"{value['size'].upper()}, {value['pixels']} px, weights: {value['quantize'] or '16 bits'}"
    yield ""
    rows = [
        [
            TITLES[stage["name"]],
            f"{stage['flops'] / 1e9:,.4g}",
            f"{stage['weights'] / 1e6:,.0f}",
            f"{stage['activations'] / 1e6:,.0f}",
            f"{stage['flops'] / (stage['weights'] + stage['activations']):.0f}",
        ]
        for stage in value["stages"]
    ]
    yield from common.markdown_table(("stage", "GFLOP", "weights, MB", "activations, MB", "FLOP/byte"), rows)
    yield ""
    chips = list(value["floors"])
    table = []
    for name in value["floors"][chips[0]]:
        cells = [value["floors"][chip][name] for chip in chips]
        title = f"an image, {value['steps']} steps" if name == "image" else TITLES[name]
        table.append([title, *(f"{1e3 * seconds:,.4g}{'*' if bound == 'memory' else ''}" for seconds, bound in cells)])
    yield from common.markdown_table(("floor, ms", *chips), table)
    yield ""
    yield "A star: bound by memory; else by arithmetic. Peaks and bandwidths:"
    for chip in CHIPS:
        yield f"- {chip.name}: {chip.tflops:g} TFLOP/s in float16, {chip.bandwidth:g} GB/s ({chip.source})"
    if value["reached"]:
        yield ""
        reached = [
            [TITLES[row["name"]], f"{1e3 * row['floor']:.4g}", f"{1e3 * row['measured']:.4g}", f"{row['share']:.0%}"]
            for row in value["reached"]
        ]
        head = (f"on {value['chip']}", "floor, ms", "measured, ms", "reached")
        yield from common.markdown_table(head, reached)


def reached(latency: Mapping[str, Any], parts: Sequence[Work], chip: Chip) -> list[dict[str, Any]]:
    """The share of the floor's speed, of each row that has one."""
    best = floors(parts, chip, latency["steps"])
    rows = []
    for row in latency["rows"]:
        if row["name"] in best:
            measured, floor = row["seconds"]["mean"], best[row["name"]][0]
            rows.append({"name": row["name"], "floor": floor, "measured": measured, "share": floor / measured})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    names = ", ".join(chip.name for chip in CHIPS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--size", default="0.5b", help="of the published checkpoint: 0.5b or 1.5b (default: 0.5b)")
    parser.add_argument("--pixels", type=int, help="sides of the image that is drawn, in place of the default")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of drawing (default: {STEPS})")
    parser.add_argument("--quantize", metavar="BITS", help="such as all=8 or llm=4,dit=8")
    parser.add_argument(
        "--latency", type=Path, metavar="FILE", help="what benchmarks.latency wrote on one of the chips"
    )
    parser.add_argument("--chip", help=f"where that was: {names}")
    common.add_out(parser)
    options = parser.parse_args(arguments)
    return common.exit_status("roofline", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from mobileo_mlx.checkpoints.quantize import parse_quantize
    from mobileo_mlx.errors import OptionError

    from .synthetic import official_config

    if options.steps < 1:
        raise OptionError("at least 1 step is needed.")
    config = official_config(options.size)
    bits = parse_quantize(options.quantize) if options.quantize is not None else {}
    latency = read_records(options.latency)[-1] if options.latency is not None else None
    chip = None if latency is None else _chip(options.chip, latency)
    if latency is not None and latency["size"] not in (None, options.size.lower()):
        raise OptionError(f"'{options.latency}' was measured at {latency['size']}; give --size {latency['size']}.")
    pixels = options.pixels or (latency["pixels"] if latency is not None else config.default_size[0])
    parts = stages(config, pixels=pixels, bits=bits)
    value = {
        "size": options.size.lower(),
        "pixels": pixels,
        "steps": options.steps,
        "quantize": options.quantize,
        "chip": None if chip is None else chip.name,
        "chips": [vars(c) for c in CHIPS],
        "stages": [vars(stage) for stage in parts],
        "floors": {c.name: floors(parts, c, options.steps) for c in CHIPS},
        "reached": [] if latency is None or chip is None else reached(latency, parts, chip),
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, options.out / "roofline.json")
    common.write_lines(lines, options.out / "roofline.md")


def _chip(name: str | None, latency: Mapping[str, Any]) -> Chip:
    """The chip that was named, or the only one that the measurement's machine can be."""
    from mobileo_mlx.errors import OptionError

    known = ", ".join(chip.name for chip in CHIPS)
    if name is not None:
        found = [chip for chip in CHIPS if chip.name.lower() == name.lower()]
        if not found:
            raise OptionError(f"there is no chip {name!r} here; there are {known}.")
        return found[0]
    there = latency["machine"]["chip"].removeprefix("Apple ").strip()
    found = [chip for chip in CHIPS if chip.name.rpartition(" ")[0] == there]
    if len(found) != 1:
        raise OptionError(f"the roofline of {there!r} is not known here; choose --chip among {known}.")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
