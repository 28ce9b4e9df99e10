"""Floating-point operations and kernels, counted from the production code's graph: `python -m benchmarks.flops`.

Nothing is downloaded; the configuration is that of the published checkpoint. The targets are for the forms that a GPU
takes: on a CPU a convolution may be written with more arithmetic, or less, where that is faster there.
Exit status: 0 all targets are met, 1 some are not, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import common
from .common import POSITIONS, PROMPT_TOKENS

if TYPE_CHECKING:
    import mlx.core as mx

    from mobileo_mlx import MobileO
    from mobileo_mlx.models.mobileo import MobileOConfig

    from .op_counter import Count

QUESTION_TOKENS = 30  # after the image
VISION = ("vision_tower", "mm_projector")


@dataclass(frozen=True)
class Line:
    """One figure beside its target, which is an upper bound.

    Attributes:
        original: what the original does.
    """

    name: str
    value: float
    unit: str
    target: float | None
    original: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is; None where there is none."""
        return None if self.target is None else self.value <= self.target


@functools.lru_cache(maxsize=8)
def dit_step(
    config: MobileOConfig, *, size: int | None = None, backend: str = "metal", guidance_scale: float = 1.5
) -> Count:
    """One step of drawing, by default with guidance: what the second of two steps adds to the first."""
    from .op_counter import trace

    first, both = (trace(config, drawing(config, steps, size, guidance_scale), backend=backend) for steps in (1, 2))
    return both - first


@functools.lru_cache(maxsize=8)
def decoder(config: MobileOConfig, *, size: int | None = None, backend: str = "metal") -> Count:
    """From latents to one image of `size` pixels squared, the model's default where None."""
    import mlx.core as mx

    from .op_counter import trace

    side = (size or config.default_size[0]) // config.vae.factor
    latents = mx.zeros((1, side, side, config.vae.latent_channels))
    return trace(config, lambda model: [model.parts.vae_decoder.decode(latents)], backend=backend)


@functools.lru_cache(maxsize=8)
def understanding(config: MobileOConfig, *, backend: str = "metal") -> Count:
    """From an image and a question, `POSITIONS` in all, to the first token."""
    from .op_counter import trace

    return trace(config, asking(config, [(0, None, 1)]), backend=backend)


@functools.lru_cache(maxsize=8)
def prefill(config: MobileOConfig, *, backend: str = "metal") -> Count:
    """The language model's part of `understanding`: without the vision tower and its projector."""
    from mobileo_mlx.conditioning import encode_image

    from .op_counter import trace
    from .synthetic import random_image

    def see(model: MobileO) -> list[mx.array]:
        return [encode_image(model.parts, random_image(config.image_size))]

    return understanding(config, backend=backend) - trace(config, see, backend=backend)


@functools.lru_cache(maxsize=8)
def second_question(config: MobileOConfig, *, backend: str = "metal") -> Count:
    """Another question about the same image: what it adds to the first one."""
    from .op_counter import trace

    question = (0, "what", 1)
    first, both = (
        trace(config, asking(config, questions), backend=backend)
        for questions in ([question], [question, (0, "where", 1)])
    )
    return both - first


def template(config: MobileOConfig, *, backend: str = "metal") -> int:
    """What reading the words takes that come before every prompt to draw: the most that keeping them could save."""
    from mobileo_mlx.conditioning import embed_prompts, hidden_states
    from mobileo_mlx.prompts import encode_prompt, generate_prompt

    from .op_counter import trace

    def read(model: MobileO) -> list[mx.array]:
        one, other = (encode_prompt(model.tokenizer, generate_prompt(prompt)) for prompt in ("apple", "zebra"))
        common_length = next(i for i, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) == 2)
        return hidden_states(model.parts, embed_prompts(model.parts.llm.embed_tokens, [one[:common_length]], []))

    return trace(config, read, backend=backend).flops


@functools.lru_cache(maxsize=8)
def token(config: MobileOConfig, *, backend: str = "metal") -> Count:
    """One more token of an answer."""
    from .op_counter import trace

    one, two = (trace(config, asking(config, [(0, None, tokens)]), backend=backend) for tokens in (1, 2))
    return two - one


def dit_block_operations(config: MobileOConfig, *, backend: str = "metal", size: int | None = None) -> Counter[str]:
    """The operations of one block in one step with guidance, not the first step.

    They are computed, so a small image of `size` pixels squared takes less time; it has the same operations.
    """
    from .op_counter import operations
    from .synthetic import with_layers

    def step(layers: int) -> Counter[str]:
        states = config.diffusion_connector.num_layers
        smaller = with_layers(with_layers(config, layers), states, llm=True)
        first, both = (operations(smaller, drawing(config, steps, size), backend=backend) for steps in (1, 2))
        return both - first

    return step(3) - step(2)


def drawing(
    config: MobileOConfig, steps: int, size: int | None, guidance_scale: float = 1.5
) -> Callable[[MobileO], list[mx.array]]:
    """The first steps of a drawing, by default with guidance, as a job for `graph.trace`."""

    def job(model: MobileO) -> list[mx.array]:
        from mobileo_mlx import GenerationStep

        from .synthetic import prompt_of

        prompt = prompt_of(PROMPT_TOKENS, model.tokenizer)
        stream = model.stream_generate(prompt, steps=20, guidance_scale=guidance_scale, width=size, height=size)
        latents: list[mx.array] = []
        for _ in range(steps):
            step = next(stream)
            assert isinstance(step, GenerationStep)
            latents.append(step.latents)
        return latents

    return job


def asking(
    config: MobileOConfig, questions: Sequence[tuple[int, str | None, int]]
) -> Callable[[MobileO], list[mx.array]]:
    """Questions about images, as a job for `graph.trace`.

    Args:
        questions: for each the image's seed; the first word, then `QUESTION_TOKENS` come after the image, or None
            for a prompt of `POSITIONS`; and the tokens of the answer.
    """

    def job(model: MobileO) -> list[mx.array]:
        from .synthetic import positions_before_image, question_of, random_image

        rest = POSITIONS - config.image_tokens - positions_before_image(model.tokenizer)
        for seed, word, tokens in questions:
            image = random_image(config.image_size, seed)
            text = question_of(rest if word is None else QUESTION_TOKENS, model.tokenizer, first_word=word or "what")
            model.ask(image, text, max_tokens=tokens)
        return []

    return job


def figures(config: MobileOConfig, *, backend: str = "metal", targets: bool = True) -> list[Line]:
    """All figures. The targets are those of the 0.5B model."""
    giga = 1e-9
    second = second_question(config, backend=backend)
    seen = sum(second.readers[name] for name in VISION)
    block = sum(dit_block_operations(config, backend=backend).values())
    lines = [
        Line("DiT step with guidance", dit_step(config, backend=backend).flops * giga, "GFLOP", 490, 540.2),
        Line("decoder, default size", decoder(config, backend=backend).flops * giga, "GFLOP", 1850, 2092),
        Line(f"prefill of {POSITIONS}", prefill(config, backend=backend).flops * giga, "GFLOP", 223, 304.1),
        Line("second question on the same image", second.flops * giga, "GFLOP", 25, 711),
        Line("... operations that read the vision tower", seen, "", 0),
        Line("operations in a DiT block, views left out", block, "", 26),
        Line("vision tower and projector", _vision(config, backend) * giga, "GFLOP", None, 488.5),
        Line("words before each prompt to draw, read anew", template(config, backend=backend) * giga, "GFLOP", None),
        Line("one token", token(config, backend=backend).flops * giga, "GFLOP", None, 0.99),
    ]
    return lines if targets else [Line(line.name, line.value, line.unit, None) for line in lines]


def _vision(config: MobileOConfig, backend: str) -> int:
    return understanding(config, backend=backend).flops - prefill(config, backend=backend).flops


def table(lines: Sequence[Line]) -> list[list[str]]:
    """The rows, as text."""
    verdicts = {None: "", True: "yes", False: "no"}
    return [
        [
            line.name,
            f"{line.value:,.4g} {line.unit}".strip(),
            "" if line.target is None else f"<= {line.target:,g}",
            "" if line.original is None else f"{line.original:,g}",
            verdicts[line.met],
        ]
        for line in lines
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flops", description=__doc__)
    parser.add_argument("--size", default="0.5b", help="of the published checkpoint: 0.5b or 1.5b (default: 0.5b)")
    parser.add_argument(
        "--backend", choices=("metal", "cpu"), default="metal", help="whose forms are counted (default: metal)"
    )
    common.add_out(parser, "flops.json")
    options = parser.parse_args(arguments)

    def run() -> int:
        from .synthetic import official_config

        lines = figures(official_config(options.size), backend=options.backend, targets=options.size.lower() == "0.5b")
        for line in common.markdown_table(("counted", "here", "target", "original", "met"), table(lines)):
            print(line)
        rows = [vars(line) | {"met": line.met} for line in lines]
        common.write_json({"size": options.size, "backend": options.backend, "rows": rows}, options.out / "flops.json")
        return 1 if any(line.met is False for line in lines) else 0

    return common.exit_status("flops", run)


if __name__ == "__main__":
    sys.exit(main())
