"""Draws several candidates of each image, asks the model about them, and keeps the best.

The phases are those of a drawing, each once for all candidates, so that weights are read once a phase: the prompt is
read, all noises are denoised and decoded, then the tower sees all images, then all questions are answered. Only "until
pass" goes through them again for each further candidate.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..diffusion import GenerationStep
from ..drawing import Drawing, condition, decode, result, seeded_noise, steps
from .judge import Judge, Judgement

if TYPE_CHECKING:
    from PIL import Image

    from ..generation_options import GenerationSettings
    from ..parts import Parts
    from ..results import GenerationResult

# Pixels that are denoised at once: more make it no faster, and the memory of activations grows with them.
_BATCH_PIXELS = 8 * 512 * 512
_MOST_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """One of several drawings of the same prompt.

    Attributes:
        seed: of its noise.
        image: finished.
        latents: (1, h, w, latent_channels) float32, scaled.
        judgement: what the model says about it.
    """

    seed: int
    image: Image.Image
    latents: mx.array
    judgement: Judgement


def candidate_seed(seed: int, index: int) -> int:
    """The seed of candidate `index` of a seed; number 0 is what is drawn without other candidates."""
    return (seed + index * 2**32) % 2**64


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The earliest that passes; where none does, the one with the highest score.

    Among those that pass, the highest score was no better a choice (docs/best-of.md has the figures); and so the same
    one is kept, whether drawing stops there or not.
    """
    passing = [one for one in candidates if one.judgement.passes]
    return passing[0] if passing else max(candidates, key=lambda one: one.judgement.score)


def stream_best(
    parts: Parts, drawing: Drawing, best_of: int, *, until_pass: bool
) -> Generator[GenerationStep | GenerationResult, None, None]:
    """Draws `best_of` candidates of each seed, and yields the steps and at last the result with those that are kept.

    `step` and `steps` count those of all batches of candidates; with `until_pass` fewer may be run. The arrays of a
    step are of one candidate for each seed that is being drawn.

    Args:
        parts: the networks.
        drawing: what to draw.
        best_of: 2 or more.
        until_pass: whether candidates are drawn one after the other, up to the first that passes.

    Raises:
        NotFiniteError: a network gives NaN or infinity.
    """
    settings = drawing.settings
    mx.reset_peak_memory()
    clock = _Clock()
    conditioning = condition(parts, drawing)
    clock.add("encode")
    judge = Judge(parts, settings.prompt, source=drawing.image)
    drawn: list[list[Candidate]] = [[] for _ in settings.seeds]
    rounds = [[index] for index in range(best_of)] if until_pass else [list(range(best_of))]
    per_batch = _per_batch(settings)
    batches_left = sum(len(_batches(len(some), per_batch)) for some in rounds)
    count, total = 0, batches_left * (len(settings.schedule[0].timesteps) - settings.schedule[1])
    for indices in rounds:
        pending = [i for i, some in enumerate(drawn) if not (until_pass and any(c.judgement.passes for c in some))]
        if not pending:
            break
        seeds: list[int] = []
        latents: list[mx.array] = []
        batches = _batches(len(indices), per_batch)
        for number, batch in enumerate(batches, start=1):
            some = [candidate_seed(settings.seeds[i], indices[j]) for j in batch for i in pending]
            noise = seeded_noise(parts, settings, some)
            for step in steps(parts, settings, conditioning, noise, last=number == len(batches)):
                count += 1
                finished = step.latents
                yield _of_one_each(step, len(pending), count, total)
            del noise, step
            seeds += some
            latents += mx.split(finished, len(some))
        clock.add("denoise")
        images = [image for one in latents for image in decode(parts, one)]
        clock.add("decode")
        for place, (seed, image, one, judgement) in enumerate(
            zip(seeds, images, latents, judge.of(images), strict=True)
        ):
            drawn[pending[place % len(pending)]].append(Candidate(seed, image, one, judgement))
        clock.add("judge")
    kept = [best(some) for some in drawn]
    yield result(
        parts,
        replace(settings, seeds=[one.seed for one in kept]),
        [one.image for one in kept],
        mx.concatenate([one.latents for one in kept]),
        clock.seconds,
        best_of=tuple(_record(one, some) for one, some in zip(kept, drawn, strict=True)),
    )


def _per_batch(settings: GenerationSettings) -> int:
    """How many candidates of each seed are denoised at once."""
    pixels = settings.width * settings.height * len(settings.seeds)
    return max(1, min(_MOST_AT_ONCE // len(settings.seeds), _BATCH_PIXELS // pixels))


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _of_one_each(step: GenerationStep, images: int, number: int, total: int) -> GenerationStep:
    arrays = {name: getattr(step, name)[:images] for name in ("latents", "velocity", "denoised")}
    mx.eval(list(arrays.values()))  # for any thread
    return replace(step, step=number, steps=total, **arrays)


def _record(kept: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What the metadata of an image say about its candidates."""
    return {
        "candidates": [
            {"seed": one.seed, "score": round(one.judgement.score, 4), "passes": one.judgement.passes}
            for one in candidates
        ],
        "checks": kept.judgement.metadata(),
    }


class _Clock:
    """Adds up the seconds of phases that come again and again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def add(self, phase: str) -> None:
        """The time since the last call was spent in this phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
