"""Memory at full size: the weights of each component, and what each phase of each task needs above them.

    python -m benchmarks.memory                     each phase alone
    python -m benchmarks.memory --tasks staged      whole tasks, a component in memory while it is needed
    python -m benchmarks.memory --tasks unstaged    whole tasks, everything in memory

The first measures what MLX holds at most (`mx.get_peak_memory`) while one phase runs with the components that it needs,
in the dtype of this machine, and accounts what follows for a device that computes in float16, with the bits of a
preset: the weights' bytes exactly, by the modules that loading makes, and above them the measured scratch, scaled from
the size of a measured element to two bytes. The others measure what is accounted: the tasks in float16, from weights on
the disk, loading and quantizing included. On a CPU that takes minutes a task, and each is written when it is done. All
write `memory.json` and `memory.md`, and leave there what another one wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .common import (
    GB,
    add_out,
    exit_status,
    machine,
    machine_line,
    markdown_table,
    read_json,
    say,
    write_json,
    write_lines,
)

if TYPE_CHECKING:
    from mobileo_mlx.models.mobileo import MobileOConfig

# GB. Above the weights in float32 on a CPU; and whole, staged, in float16 with the bits of "small".
ABOVE_TARGETS = {("ask", "vision"): 0.5, ("generate", "step"): 0.08, ("generate", "decode"): 1.5}
STAGED_TARGETS = {"generate": 0.95, "ask": 0.85, "edit": 0.95}
UNSTAGED_TARGET = 3.1


def accounted_phases(
    config: MobileOConfig, found: Mapping[str, Any], preset: str, task: str
) -> dict[tuple[str, ...], float]:
    """GB that each of a task's phases needs in float16 with a preset, by its components; see the top of the file."""
    import mlx.core as mx

    from mobileo_mlx.checkpoints.quantize import resolve_bits

    from .phase_memory import weight_bytes

    bits = resolve_bits(None, preset)
    scaled = mx.float16.size / getattr(mx, found["dtype"]).size
    accounted: dict[tuple[str, ...], float] = {}
    for phase in (phase for phase in found["phases"] if phase["task"] == task):
        components = tuple(phase["components"])
        weights = sum(weight_bytes(config, name, mx.float16, bits) for name in components) / GB
        accounted[components] = max(weights + scaled * phase["above_gb"], accounted.get(components, 0.0))
    return accounted


def rows(config: MobileOConfig, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that have a target, and those that they are made of, as `benchmarks.report` reads them."""
    import mlx.core as mx

    from mobileo_mlx.checkpoints.quantize import resolve_bits
    from mobileo_mlx.models.mobileo import COMPONENTS

    from .phase_memory import SAME, weight_bytes

    def row(name: str, target: float | None, measured: float | None, accounted: float | None) -> dict[str, Any]:
        return {"name": name, "target_gb": target, "measured_gb": measured, "accounted_gb": accounted}

    exact = found["dtype"] == "float32" and not found["bits"]
    table = []
    for phase in found["phases"]:
        key = (phase["task"], phase["phase"])
        if key not in SAME:
            target = ABOVE_TARGETS.get(key) if exact else None
            table.append(row(f"{', '.join(key)}: above the weights", target, phase["above_gb"], None))
    plan = found["plan"]
    bits = resolve_bits(None, plan)
    for task, target in STAGED_TARGETS.items():
        accounted = max(accounted_phases(config, found, plan, task).values())
        measured = _largest(found, "peak_gb", task=task, staged=True, bits=bits, forms="metal")
        limit = target if plan == "small" else None
        table.append(row(f"{task}, staged, float16, {plan}", limit, measured, accounted))
        if (measured := _largest(found, "peak_gb", task=task, staged=True, bits=bits, forms="cpu")) is not None:
            table.append(row(f"{task}, staged, float16, {plan}, in a CPU's forms", None, measured, accounted))
    everything = sum(weight_bytes(config, name, mx.float16, {}) for name in COMPONENTS if name != "vae_encoder") / GB
    loaded = _largest(found, "loaded_gb", staged=False, bits={}, forms="metal")
    table.append(row("all weights but the encoder, float16, unstaged", UNSTAGED_TARGET, loaded, everything))
    scratch = mx.float16.size / getattr(mx, found["dtype"]).size * max(phase["above_gb"] for phase in found["phases"])
    peak = _largest(found, "peak_gb", staged=False, bits={}, forms="metal")
    table.append(row("the same, and the largest scratch of a phase", None, peak, everything + scratch))
    return table


def _largest(found: Mapping[str, Any], key: str, **wanted: Any) -> float | None:
    """Among the tasks that were measured; None where none was."""
    values = [task[key] for task in found["tasks"] if all(task[name] == value for name, value in wanted.items())]
    return max(values, default=None)


def report(config: MobileOConfig, result: Mapping[str, Any]) -> Iterator[str]:
    """The tables, in Markdown."""
    yield f"# Memory: {result['size']}, random weights"
    yield ""
    yield f"Measured in {result['dtype']}, {result['bits'] or 'no bits'}: {machine_line(result['machine'])}."
    yield ""
    kinds = list(result["weights_gb"])
    yield from markdown_table(
        ["component, GB", *kinds],
        [[name, *(f"{result['weights_gb'][k][name]:.3f}" for k in kinds)] for name in result["weights_gb"][kinds[0]]],
    )
    yield ""
    yield from markdown_table(
        ["phase, GB", "weights, accounted", "weights, measured", "above them, measured", "peak, measured"],
        [
            [f"{p['task']}: {p['phase']}", *(f"{p[k]:.3f}" for k in ("weights_gb", "loaded_gb", "above_gb", "peak_gb"))]
            for p in result["phases"]
        ],
    )
    yield ""
    yield from _tasks_table(config, result)
    yield from markdown_table(
        ["GB", "target", "measured", "accounted"],
        [
            [row["name"], *(_number(row[k]) for k in ("target_gb", "measured_gb", "accounted_gb"))]
            for row in result["rows"]
        ],
    )


def _tasks_table(config: MobileOConfig, result: Mapping[str, Any]) -> Iterator[str]:
    """Whole tasks phase by phase, and how they were run."""
    from .task_memory import ANSWER_TOKENS, STEPS

    table = []
    for task in result["tasks"]:
        accounted = accounted_phases(config, result, task["preset"], task["task"])
        for phase in task["phases"]:
            names = set(phase["components"])
            fitting = [value for components, value in accounted.items() if names <= set(components)]
            table.append([
                f"{task['task']}, {'staged' if task['staged'] else 'unstaged'}, {task['preset']}: "
                + ", ".join(phase["components"]),
                task["forms"],
                f"{phase['peak_gb']:.3f}",
                f"{phase.get('cache_gb', 0):.3f}",
                f"{max(fitting):.3f}" if task["staged"] else "",
            ])  # fmt: skip
    if table:
        columns = ["phase of a whole task in float16, GB", "forms", "peak, measured", "MLX's cache", "accounted"]
        yield from markdown_table(columns, table)
        yield ""
        yield (
            "The process may hold the peak and MLX's cache together, which on a CPU is 32 MB at most. "
            "Whole tasks run through the public methods, from float16 weights on the disk; their peaks include reading "
            f"and quantizing these. Of {STEPS} steps the first is run, and {ANSWER_TOKENS} tokens of an answer. "
            "The forms are those that the code chooses for a GPU (metal) or for a CPU, which differ in convolutions "
            "and in the size of bands; a quantized layer multiplies densely from a few rows on in both. They ran on "
            f"{machine_line(result['tasks'][-1]['machine'])}, whose kernels unfold a dense convolution in float32, "
            "write attention's scores out and dequantize in several passes over it: they need more than Metal's."
        )
        yield ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def measure_phases(options: argparse.Namespace, config: MobileOConfig) -> dict[str, Any]:
    """Everything but the whole tasks."""
    import mlx.core as mx

    from mobileo_mlx.checkpoints.precision import default_dtype, dtype_name, parse_dtype
    from mobileo_mlx.checkpoints.quantize import resolve_bits
    from mobileo_mlx.models.mobileo import COMPONENTS

    from . import phase_memory
    from .phase_memory import weight_bytes
    from .synthetic import synthetic_model

    dtype = default_dtype("dit", mx.float16) if options.dtype is None else parse_dtype(options.dtype)
    bits = resolve_bits(None, options.preset)
    plan = resolve_bits(None, options.plan)
    name = dtype_name(dtype)
    return {
        "size": options.size,
        "dtype": name,
        "bits": bits,
        "plan": options.plan,
        "machine": machine(),
        "weights_gb": {
            kind: {c: weight_bytes(config, c, d, b) / GB for c in COMPONENTS}
            for kind, d, b in (
                (f"{name}{', ' + options.preset if bits else ''}, measured", dtype, bits),
                ("float16", mx.float16, {}),
                (f"float16, {options.plan}", mx.float16, plan),
            )
        },
        "phases": list(phase_memory.measure(synthetic_model(config, dtype=dtype, quantize=bits), bits, dtype)),
    }


def measure_tasks(options: argparse.Namespace, config: MobileOConfig) -> Iterator[dict[str, Any]]:
    """Whole tasks, one after the other."""
    from . import task_memory
    from .synthetic import write_checkpoint

    staged = options.tasks == "staged"
    with TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch) / "model"
        say("writing random weights")
        write_checkpoint(config, folder)
        for task in (task for task in task_memory.TASKS if task in (options.only or task_memory.TASKS)):
            preset = options.plan if staged else "full"
            yield task_memory.measure(folder, task, preset=preset, staged=staged, forms=options.forms)


def run(options: argparse.Namespace) -> None:
    """Measures, and writes `memory.json` and `memory.md`.

    Raises:
        OptionError: an unknown size, dtype or preset; or whole tasks are asked for before the phases.
        OutputError: the folder can't be written.
        CheckpointError: an earlier result is damaged.
    """
    from mobileo_mlx.errors import OptionError

    from .synthetic import official_config

    config = official_config(options.size)
    path = options.out / "memory.json"
    earlier = read_json(path) if path.exists() else {}
    if earlier.get("size") != options.size:
        earlier = {}
    if options.tasks is None:
        _write(config, measure_phases(options, config) | {"tasks": earlier.get("tasks", [])}, options.out)
    elif earlier.get("plan") != options.plan:
        raise OptionError(f"'{path}' accounts nothing for this size and plan; run this without --tasks first.")
    else:
        for found in measure_tasks(options, config):
            which = ("task", "staged", "bits", "forms")
            others = [task for task in earlier["tasks"] if any(task[key] != found[key] for key in which)]
            earlier["tasks"] = [*others, found]
            _write(config, earlier, options.out)
    print((options.out / "memory.md").read_text(encoding="utf-8"), end="")


def _write(config: MobileOConfig, result: dict[str, Any], out: Path) -> None:
    result = result | {"rows": rows(config, result)}
    write_json(result, out / "memory.json")
    write_lines(report(config, result), out / "memory.md")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--size", default="0.5b", help="of the official model: 0.5b or 1.5b")
    found.add_argument("--dtype", help="what to measure phases in; by default this machine's")
    found.add_argument("--preset", default="full", help="bits to measure phases with: small, balanced or full")
    found.add_argument("--plan", default="small", help="bits to account with, and to measure staged tasks with")
    found.add_argument("--tasks", choices=("staged", "unstaged"), help="measure whole tasks in float16")
    found.add_argument("--only", action="append", choices=("ask", "generate", "edit"), help="one task; repeatable")
    found.add_argument(
        "--forms", choices=("metal", "cpu"), default="metal", help="whose forms tasks are run in (default: metal)"
    )
    found.add_argument("--scratch", type=Path, metavar="DIR", help="for 3 GB of random weights, for a while")
    add_out(found)
    return found


def main() -> int:
    options = parser().parse_args()
    return exit_status("benchmarks.memory", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
