"""The phases of a drawing, from a prompt to images: for one batch of seeds, and for candidates."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from .checkpoints.adapters import recorded
from .checkpoints.precision import dtypes_text
from .conditioning import read_prompts, text_input, unconditional_input
from .diffusion import GenerationStep, denoise
from .generation_options import TURBO
from .images import cover_crop, from_array
from .latents import decode_latents, encode_latents, noise, noised
from .not_finite import check_finite, explained
from .results import GenerationResult

if TYPE_CHECKING:
    from PIL import Image

    from .generation_options import GenerationSettings
    from .models.sana import SanaTransformer
    from .models.sana_cross_attention import TextInput
    from .parts import Parts


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn, checked.

    Attributes:
        settings: complete.
        ids: token ids of the prompt.
        negative_ids: those of the negative prompt, if there is one.
        image: that is edited.
    """

    settings: GenerationSettings
    ids: list[int]
    negative_ids: list[int] | None
    image: Image.Image | None


@dataclass(frozen=True)
class Conditioning:
    """What all noises of a drawing have in common, evaluated.

    Attributes:
        text: what the DiT reads of the prompt.
        unconditional: with guidance, of the negative prompt or of none.
        source: scaled latents of the image, (1, h, w, latent_channels), where an edit starts from them.
    """

    text: TextInput
    unconditional: TextInput | None
    source: mx.array | None


def stream_drawing(
    parts: Parts, drawing: Drawing, latents: mx.array | None
) -> Generator[GenerationStep | GenerationResult, None, None]:
    """Draws the images of all seeds as one batch, or of initial latents instead of seeds."""
    settings = drawing.settings
    mx.reset_peak_memory()
    begin = time.perf_counter()
    if latents is None:
        latents = seeded_noise(parts, settings, settings.seeds)
    conditioning = condition(parts, drawing)
    encoded = time.perf_counter()
    for step in steps(parts, settings, conditioning, latents):
        latents = step.latents
        yield step
    denoised = time.perf_counter()
    images = decode(parts, latents)
    timings = {"encode": encoded - begin, "denoise": denoised - encoded, "decode": time.perf_counter() - denoised}
    yield result(parts, settings, images, latents, timings)


def seeded_noise(parts: Parts, settings: GenerationSettings, seeds: Sequence[int]) -> mx.array:
    """The noise of each seed, (B, h, w, latent_channels) float32, evaluated."""
    latents = mx.concatenate([noise(parts.config, seed, settings.width, settings.height) for seed in seeds])
    mx.eval(latents)
    return latents


def condition(parts: Parts, drawing: Drawing) -> Conditioning:
    """Reads the prompt and the image. The phase is "condition" afterwards.

    Raises:
        NotFiniteError: a network gives NaN or infinity.
    """
    settings, image, source = drawing.settings, drawing.image, None
    if image is not None and settings.strength is not None:
        parts.enter("encode")
        source = encode_latents(parts, cover_crop(image, settings.width, settings.height))
    prompts = [drawing.ids] if drawing.negative_ids is None else [drawing.ids, drawing.negative_ids]
    states, *negative = read_prompts(parts, prompts, [] if image is None else [image])
    text, unconditional = text_input(parts, states), None
    if negative:
        unconditional = text_input(parts, negative[0])
    elif settings.guidance_scale != 1:
        unconditional = unconditional_input(parts, states)
    evaluated = [text.states] if unconditional is None else [text.states, unconditional.states]
    check_finite(parts, "diffusion_connector", *evaluated)
    return Conditioning(text, unconditional, source)


def steps(
    parts: Parts, settings: GenerationSettings, conditioning: Conditioning, latents: mx.array, *, last: bool = True
) -> Generator[GenerationStep, None, None]:
    """Denoises a batch of noises.

    Args:
        parts: the networks.
        settings: of the drawing.
        conditioning: likewise.
        latents: noise, (B, h, w, latent_channels).
        last: whether the DiT is used for nothing else before the next phase.

    Raises:
        NotFiniteError: a step gives NaN or infinity; with the cause.
    """
    parts.enter("denoise")
    scheduler, start = settings.schedule
    if conditioning.source is not None:
        latents = noised(conditioning.source, latents, float(scheduler.sigmas[start]))
        mx.eval(latents)
    donate, turbo = last and not parts.keep_loaded, settings.options.get("speed") == TURBO
    stream = denoise(
        _network(parts, donate=donate, turbo=turbo),
        scheduler,
        latents,
        conditioning.text,
        unconditional=conditioning.unconditional,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        start=start,
        donate=donate,
    )
    del latents  # the sampler alone holds what it is at
    yield from explained(parts, stream, turbo=turbo)


def _network(parts: Parts, *, donate: bool, turbo: bool) -> SanaTransformer:
    """The DiT, which nothing else refers to where it is donated."""
    dit = parts.pop_dit() if donate else parts.dit
    return parts.with_turbo(dit) if turbo else dit


def decode(parts: Parts, latents: mx.array) -> list[Image.Image]:
    """The images of scaled latents (B, h, w, latent_channels).

    Raises:
        NotFiniteError: the decoder gives NaN or infinity.
    """
    parts.enter("decode")
    return from_array(decode_latents(parts, latents))


def result(
    parts: Parts,
    settings: GenerationSettings,
    images: list[Image.Image],
    latents: mx.array,
    timings: dict[str, float],
    best_of: tuple[dict, ...] = (),
) -> GenerationResult:
    """Finished images, with all that is recorded of them."""
    return GenerationResult(
        **vars(settings),
        model=parts.checkpoint.location,
        images=images,
        latents=latents,
        timings=timings,
        peak_memory=mx.get_peak_memory(),
        cache_memory=mx.get_cache_memory(),
        **recorded(parts.adapters),
        dtype=dtypes_text(parts.dtypes),
        quantize=dict(parts.bits) or None,
        best_of=best_of,
    )
