"""Whether drawings that wait together are better drawn as one batch: seeds of one prompt, and different prompts.

    python -m benchmarks.batching --model tiny
    python -m benchmarks.batching --random-weights 0.5b --steps 2 --pairs 1 --most 2

Each pair draws the same pictures one after the other and as a batch, in turn, in one process; the ratio is taken pair
by pair. Different prompts are padded to the longest, as the pipeline does not batch them; this says what it would gain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mobileo_mlx import blas

from . import common

if TYPE_CHECKING:
    import mlx.core as mx

    from mobileo_mlx import MobileO

PROMPTS = ("a red circle on a blue background", "two green squares", "a small yellow star left of a large blue circle")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random-weights", metavar="SIZE", help="in place of a model: 0.5b or 1.5b, of that size")
    parser.add_argument("--steps", type=int, default=20, help="of each picture (default: 20)")
    parser.add_argument("--most", type=int, default=8, help="pictures in a batch (default: 8)")
    parser.add_argument("--pairs", type=int, default=9, help="of runs (default: 9)")
    parser.add_argument("--threads", type=int, default=None, help="of BLAS; by default all")
    given = parser.parse_args()
    blas.preload()
    if given.threads == 1:
        common.one_thread()
    from mobileo_mlx import MobileO

    if given.random_weights:
        from .synthetic import official_config, synthetic_model

        model = synthetic_model(official_config(given.random_weights))
    else:
        model = MobileO.load(given.model)
    rows = []
    for count in (count for count in (2, 4, 8) if count <= given.most):
        rows.append(_compare(f"{count} seeds", given.pairs, *_seeds(model, list(range(count)), given.steps)))
    for prompts in (PROMPTS[:2], [*PROMPTS, PROMPTS[0]]):
        if len(prompts) <= given.most:
            rows.append(_compare(f"{len(prompts)} prompts", given.pairs, *_prompts(model, prompts, given.steps)))
    head = (
        "what",
        "alone, wall s",
        "batch, wall s",
        "batch / alone, wall",
        "batch / alone, processor",
        "largest difference",
    )
    print("\n".join(common.markdown_table(head, rows)))
    print(common.machine_line(common.machine()))


def _seeds(model: MobileO, seeds: list[int], steps: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def alone() -> list[Any]:
        return [model.generate(PROMPTS[0], seed=seed, steps=steps).images[0] for seed in seeds]

    return alone, lambda: model.generate(PROMPTS[0], seed=seeds, steps=steps).images


def _prompts(model: MobileO, prompts: Sequence[str], steps: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def alone() -> list[Any]:
        return [model.generate(prompt, seed=seed, steps=steps).images[0] for seed, prompt in enumerate(prompts)]

    return alone, lambda: draw_prompts(model, prompts, steps)


def draw_prompts(model: MobileO, prompts: Sequence[str], steps: int) -> list[Any]:
    """Different prompts as one batch, seed i for prompt i, with the default options."""
    import mlx.core as mx

    from mobileo_mlx import conditioning, latents
    from mobileo_mlx.diffusion import denoise
    from mobileo_mlx.generation_options import resolve
    from mobileo_mlx.prompts import encode_prompt, generate_prompt

    parts = model.parts
    settings = resolve(model.config, "generate", prompts[0], steps=steps)
    context = model.config.llm.max_position_embeddings
    ids = [encode_prompt(model.tokenizer, generate_prompt(prompt), context=context) for prompt in prompts]
    inputs = conditioning.embed_prompts(parts.llm.embed_tokens, _padded(ids), attention_mask=_mask(ids))
    states = conditioning.hidden_states(parts, inputs)
    text = conditioning.text_input(parts, states, mask=inputs.padding_mask)
    # Guidance's unconditional half has the length of the prompt, so each has its own.
    dropped = mx.ones(len(prompts), mx.bool_)
    unconditional = conditioning.text_input(parts, states, mask=inputs.padding_mask, dropped=dropped)
    noise: mx.array = mx.concatenate(
        [latents.noise(model.config, seed, settings.width, settings.height) for seed in range(len(prompts))]
    )
    *_, last = denoise(
        parts.dit,
        settings.schedule[0],
        noise,
        text,
        unconditional=unconditional,
        guidance_scale=settings.guidance_scale,
    )
    return model.decode_latents(last.latents)


def _padded(rows: Sequence[Sequence[int]]) -> Any:
    import numpy as np

    longest = max(map(len, rows))
    return np.array([[*row, *[0] * (longest - len(row))] for row in rows])


def _mask(rows: Sequence[Sequence[int]]) -> Any:
    import numpy as np

    return np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])


def _compare(name: str, pairs: int, alone: Callable[[], Any], batch: Callable[[], Any]) -> tuple[str, ...]:
    import numpy as np

    first, second = alone(), batch()  # which loads the networks, too
    difference = max(
        int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(first, second, strict=True)
    )
    walls: list[tuple[float, float]] = []
    processor: list[float] = []
    for pair in range(pairs):
        taken = {}
        for run in (alone, batch) if pair % 2 else (batch, alone):
            begun = time.perf_counter(), time.process_time()
            run()
            taken[run] = time.perf_counter() - begun[0], time.process_time() - begun[1]
        walls.append((taken[alone][0], taken[batch][0]))
        processor.append(taken[batch][1] / taken[alone][1])
    ratio = statistics.median(batched / single for single, batched in walls)
    return (
        name,
        f"{statistics.median(wall for wall, _ in walls):.3f}",
        f"{statistics.median(wall for _, wall in walls):.3f}",
        f"{ratio:.2f}",
        f"{statistics.median(processor):.2f}",
        f"{difference} of 255",
    )


if __name__ == "__main__":
    main()
