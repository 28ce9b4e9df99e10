"""What whole tasks hold at most: the public methods run at full size, in the dtype and bits of a plan.

The weights are random and lie on the disk in float16, so that loading, quantizing and computing are those of a
checkpoint. Memory does not depend on how many steps are run; the first of twenty is. `benchmarks.memory` puts the
figures beside those that it accounts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx

from mobileo_mlx import GenerationResult, GenerationStep, MobileO
from mobileo_mlx.checkpoints import quantize
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.ops import bands
from mobileo_mlx.ops.forms import forced
from mobileo_mlx.parts import PHASES, Parts

from .common import GB, POSITIONS, PROMPT_TOKENS, machine, say
from .op_counter import pretend_device

TASKS = ("ask", "generate", "edit")
STEPS, ANSWER_TOKENS = 20, 2


class MemoryProbe:
    """Notes what each phase of a model's tasks holds at most, what it loads included.

    Attributes:
        peaks: in the order in which they ran, the networks of each phase, the bytes that MLX held at most, and those
            that its cache held besides at the end.
    """

    def __init__(self, parts: Parts):
        self.peaks: list[tuple[tuple[str, ...], int, int]] = []
        self._begun = ""
        parts.on_phase = self._enter

    def _enter(self, phase: str) -> None:
        self.end()
        self._begun = phase
        mx.reset_peak_memory()

    def end(self) -> None:
        """Ends the phase that runs."""
        if self._begun:
            self.peaks.append((PHASES[self._begun], mx.get_peak_memory(), mx.get_cache_memory()))
        self._begun = ""


def run_task(model: MobileO, task: str) -> list[tuple[tuple[str, ...], int, int]]:
    """The peaks of one task's phases, see `MemoryProbe`."""
    from .synthetic import positions_before_image, prompt_of, question_of, random_image

    config, tokenizer = model.config, model.tokenizer
    image = random_image(config.image_size)
    prompt = prompt_of(PROMPT_TOKENS, tokenizer)
    drawing: Any = {"steps": STEPS, "seed": 0}
    after_image = POSITIONS - config.image_tokens - positions_before_image(tokenizer)
    jobs: dict[str, Callable[[], object]] = {
        "ask": lambda: model.ask(image, question_of(after_image, tokenizer), max_tokens=ANSWER_TOKENS),
        "generate": lambda: _draw(model, partial(model.stream_generate, prompt, **drawing)),
        "edit": lambda: _draw(model, partial(model.stream_edit, image, "make it blue", **drawing)),
    }
    probe = MemoryProbe(model.parts)
    jobs[task]()
    probe.end()
    return probe.peaks


def _draw(model: MobileO, stream: Callable[[], Iterator[GenerationStep | GenerationResult]]) -> None:
    """The first step of a drawing; then its latents are decoded, as otherwise those of the last step are."""
    events = stream()
    step = next(events)
    assert isinstance(step, GenerationStep)
    latents = step.latents
    del step, events  # ends the drawing
    model.parts.enter("decode")
    model.decode_latents(latents)


def measure(folder: Path, task: str, *, preset: str, staged: bool, forms: str) -> dict[str, Any]:
    """One task in float16 on the checkpoint in a folder.

    Args:
        folder: as `synthetic.write_checkpoint` wrote it.
        task: one of `TASKS`.
        preset: a precision, as `MobileO.load` takes it.
        staged: whether a phase keeps only the components that it needs; else all that any task needs are loaded
            before.
        forms: the backend whose forms of the operations are run, "metal" or "cpu", on whatever backend is here.
    """
    say(f"{task}, {'staged' if staged else 'unstaged'}, {preset}, in the forms for {forms}")
    gc.collect()
    before = mx.get_active_memory()
    # Few rows times a quantized weight take minutes on a CPU in float16. Densely they are fast, and take the memory of
    # one layer's weight more: not of `lm_head`, which sees one row.
    dense = mock.patch.object(quantize, "MANY_ROWS_GPU", quantize.MANY_ROWS_CPU)
    # A CPU's kernels unfold a convolution of a whole map, nine times as large and in float32, as no GPU's do. In small
    # bands that is little beside the rest; what a GPU holds on whole maps has to be measured on one.
    small = mock.patch.object(bands, "GPU_BYTES", 2**22)
    with pretend_device(forms), dense, small, forced({"map": "bands"}):
        model = MobileO.load(folder, dtype="float16", precision=preset, keep_loaded=not staged)
        loaded = 0
        if not staged:
            for name in COMPONENTS:
                if name != "vae_encoder":
                    mx.eval(model.parts[name].parameters())
            loaded = mx.get_active_memory() - before
        peaks = [(names, (peak - before) / GB, cache / GB) for names, peak, cache in run_task(model, task)]
    return {
        "task": task,
        "staged": staged,
        "preset": preset,
        "bits": quantize.resolve_bits(None, preset),
        "forms": forms,
        "loaded_gb": loaded / GB,
        "peak_gb": max(peak for _, peak, _ in peaks),
        "phases": [{"components": list(names), "peak_gb": peak, "cache_gb": cache} for names, peak, cache in peaks],
        "machine": machine(),
    }
