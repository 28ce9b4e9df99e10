"""Memory at full size: the weights of each component, and what each phase of each task needs above them.

    python -m benchmarks.memory --out benchmarks/results

Measured is what MLX holds at most (`mx.get_peak_memory`) while one phase runs with the components that it needs, in
the dtype of this machine, and stage by stage as `--staged` runs them. Accounted is what follows for a device that
computes in float16, with the bits of a preset: the weights' bytes exactly, by the modules that loading makes, and
above them the measured scratch, scaled from the size of a measured element to two bytes. On a CPU the scratch holds
unfolded convolutions, which Metal does not make.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mobileo_mlx  # noqa: F401  (before MLX: this is what loads a fast BLAS)

from .common import RESULTS, exit_status, machine, machine_line, markdown_table, say, write_json, write_lines

if TYPE_CHECKING:
    import mlx.core as mx

    from mobileo_mlx import MobileO
    from mobileo_mlx.models.mobileo import MobileOConfig

PROMPT_TOKENS, POSITIONS, GUIDANCE = 60, 300, 1.5
GB = 1e9

# In the order in which they run: the task, the phase, the components.
PHASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ask", "vision", ("vision_tower", "mm_projector")),
    ("ask", "prefill", ("llm", "lm_head")),
    ("ask", "decode", ("llm", "lm_head")),
    ("generate", "encode", ("llm", "diffusion_connector")),
    ("generate", "step", ("dit",)),
    ("generate", "decode", ("vae_decoder",)),
    ("edit", "vision", ("vision_tower", "mm_projector")),
    ("edit", "encode", ("llm", "diffusion_connector")),
    ("edit", "step", ("dit",)),
    ("edit", "decode", ("vae_decoder",)),
)
# The same work as another one's.
SAME = {("edit", "vision"): ("ask", "vision"), ("edit", "decode"): ("generate", "decode")}

# GB. Above the weights in float32 on a CPU; and whole, staged, in float16 with the bits of "small".
ABOVE_TARGETS = {("ask", "vision"): 0.5, ("generate", "step"): 0.08, ("generate", "decode"): 1.5}
STAGED_TARGETS = {"generate": 0.95, "ask": 0.85, "edit": 0.95}
UNSTAGED_TARGET = 3.1


@dataclass(frozen=True)
class Phase:
    """One phase, measured. All in bytes.

    Attributes:
        weights: of its components, by accounting in the dtype and bits that were measured.
        loaded: the same, measured.
        peak: what was in use at most.
    """

    task: str
    name: str
    components: tuple[str, ...]
    weights: int
    loaded: int
    peak: int

    @property
    def above(self) -> int:
        return self.peak - self.loaded


def weight_bytes(config: MobileOConfig, component: str, dtype: mx.Dtype, bits: Mapping[str, int]) -> int:
    """What a component's weights take, by the modules that loading makes; nothing is computed."""
    from mobileo_mlx.checkpoint import kept_random_state, named_parameters
    from mobileo_mlx.models.mobileo import build
    from mobileo_mlx.quantize import QuantizeSpec, quantized_like

    class Everything:
        def __contains__(self, name: object) -> bool:
            return True

    with kept_random_state():
        module = build(component, config)
        if component in bits:
            module = quantized_like(module, Everything(), QuantizeSpec(bits[component]))
    module.set_dtype(dtype)
    return sum(array.nbytes for array in named_parameters(module).values())


def measure(model: MobileO, bits: Mapping[str, int], dtype: mx.Dtype) -> Iterator[Phase]:
    """Runs each phase once, alone in memory."""
    import mlx.core as mx

    model.keep_loaded = False
    done: dict[tuple[str, str], Phase] = {}
    for task, name, components in PHASES:
        if (twin := SAME.get((task, name))) is not None:
            phase = done[twin]
            yield Phase(task, name, phase.components, phase.weights, phase.loaded, phase.peak)
            continue
        say(f"{task}: {name}")
        model.release()
        gc.collect()
        before = mx.get_active_memory()
        model.stage(*components)
        for component in components:
            mx.eval(model.component(component).parameters())
        loaded = mx.get_active_memory() - before
        run = _phase(model, task, name)
        mx.clear_cache()
        mx.reset_peak_memory()
        run()
        phase = Phase(
            task,
            name,
            components,
            weights=sum(weight_bytes(model.config, component, dtype, bits) for component in components),
            loaded=loaded,
            peak=mx.get_peak_memory() - before,
        )
        del run
        done[task, name] = phase
        yield phase
    model.release()


def _phase(model: MobileO, task: str, name: str) -> Callable[[], object]:
    """A phase with its inputs, which are in memory already."""
    import mlx.core as mx

    from mobileo_mlx.decoding import decode
    from mobileo_mlx.diffusion import denoise
    from mobileo_mlx.schedulers import make_scheduler

    from .synthetic import random_image

    config = model.config
    length = POSITIONS if task != "generate" else PROMPT_TOKENS
    width, height = config.default_size
    latents = model.noise(0, width, height)
    if name == "vision":
        image = random_image(config.image_size)
        return lambda: mx.eval(model.encode_image(image))
    if name == "step":
        dit = model.component("dit")
        conditioning = mx.random.normal((2, length, config.dit.caption_channels)).astype(dit.scale_shift_table.dtype)
        mx.eval(conditioning, latents)
        steps = denoise(dit, make_scheduler("dpm++", 20, 3.0), latents, conditioning, guidance_scale=GUIDANCE)
        return lambda: [next(steps) for _ in range(2)]
    if (task, name) == ("generate", "decode"):
        mx.eval(latents)
        return lambda: mx.eval(model.decode_array(latents))
    ids = [i % config.llm.vocab_size for i in range(length)]
    if name == "encode":
        guided: Any = {"guided": True, "negative": None}
        return lambda: mx.eval(model.conditioning(model.hidden_states([ids], []), **guided)[0])
    llm = model.component("llm")
    cache = llm.make_cache()
    tokens = decode(llm, model.lm_head(), llm.embed_tokens(mx.array([ids])), cache, max_tokens=9)
    if name == "prefill":
        return lambda: next(tokens)
    next(tokens)
    mx.eval([layer.fetch() for layer in cache])
    return lambda: list(tokens)


def rows(
    config: MobileOConfig, phases: Sequence[Phase], dtype: mx.Dtype, preset: str, measured_bits: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The figures that have a target, and those that they are made of, as `benchmarks.report` reads them."""
    import mlx.core as mx

    from mobileo_mlx.models.mobileo import COMPONENTS
    from mobileo_mlx.quantize import PRESETS

    half = 2 / dtype.size
    plan = {name: weight_bytes(config, name, mx.float16, PRESETS[preset]) for name in COMPONENTS}
    plain = {name: weight_bytes(config, name, mx.float16, {}) for name in COMPONENTS}
    found: list[dict[str, Any]] = []
    for phase in phases:
        key = (phase.task, phase.name)
        if key not in SAME:
            exact = dtype == mx.float32 and not measured_bits
            target = ABOVE_TARGETS.get(key) if exact else None
            found.append(_row(f"{phase.task}, {phase.name}: above the weights", target, phase.above, None))
    is_plan = dtype == mx.float16 and dict(measured_bits) == PRESETS[preset]
    for task, target in STAGED_TARGETS.items():
        own = [phase for phase in phases if phase.task == task]
        accounted = max(sum(plan[c] for c in phase.components) + half * phase.above for phase in own)
        measured = max(phase.peak for phase in own) if is_plan else None
        found.append(
            _row(f"{task}, staged, float16, {preset}", target if preset == "small" else None, measured, accounted)
        )
    everything = sum(size for name, size in plain.items() if name != "vae_encoder")
    found.append(_row("all weights but the encoder, float16, unstaged", UNSTAGED_TARGET, None, everything))
    scratch = half * max(phase.above for phase in phases)
    found.append(_row("the same, and the largest scratch of a phase", None, None, everything + scratch))
    return found


def _row(name: str, target: float | None, measured: float | None, accounted: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "target_gb": target,
        "measured_gb": None if measured is None else measured / GB,
        "accounted_gb": None if accounted is None else accounted / GB,
    }


def report(result: Mapping[str, Any]) -> Iterator[str]:
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
    yield from markdown_table(
        ["GB", "target", "measured", "accounted"],
        [
            [row["name"], *(_told(row[k]) for k in ("target_gb", "measured_gb", "accounted_gb"))]
            for row in result["rows"]
        ],
    )


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def run(options: argparse.Namespace) -> None:
    """Measures, and writes `memory.json` and `memory.md`.

    Raises:
        OptionError: an unknown size, dtype or preset.
        OutputError: the folder can't be written.
    """
    import mlx.core as mx

    from mobileo_mlx.checkpoint import default_dtype, parse_dtype
    from mobileo_mlx.models.mobileo import COMPONENTS
    from mobileo_mlx.quantize import chosen_bits

    from .synthetic import official_config, synthetic_model

    config = official_config(options.size)
    dtype = default_dtype(mx.float16) if options.dtype is None else parse_dtype(options.dtype)
    bits = chosen_bits(None, options.preset)
    plan = chosen_bits(None, options.plan)
    phases = list(measure(synthetic_model(config, dtype=dtype, quantize=bits), bits, dtype))
    name = str(dtype).removeprefix("mlx.core.")
    result = {
        "size": options.size,
        "dtype": name,
        "bits": bits,
        "machine": machine(),
        "weights_gb": {
            kind: {c: weight_bytes(config, c, d, b) / GB for c in COMPONENTS}
            for kind, d, b in (
                (f"{name}{', ' + options.preset if bits else ''}, measured", dtype, bits),
                ("float16", mx.float16, {}),
                (f"float16, {options.plan}", mx.float16, plan),
            )
        },
        "phases": [
            {
                "task": phase.task,
                "phase": phase.name,
                "components": phase.components,
                "weights_gb": phase.weights / GB,
                "loaded_gb": phase.loaded / GB,
                "above_gb": phase.above / GB,
                "peak_gb": phase.peak / GB,
            }
            for phase in phases
        ],
        "rows": rows(config, phases, dtype, options.plan, bits),
    }
    write_json(result, options.out / "memory.json")
    lines = list(report(result))
    write_lines(lines, options.out / "memory.md")
    print("\n".join(lines))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--size", default="0.5b", help="of the official model: 0.5b or 1.5b")
    found.add_argument("--dtype", help="what to measure in; by default this machine's")
    found.add_argument("--preset", default="full", help="bits to measure with: small, balanced or full")
    found.add_argument("--plan", default="small", help="bits to account with")
    found.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go")
    return found


def main() -> int:
    options = parser().parse_args()
    return exit_status("benchmarks.memory", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
