"""The denoising loop with classifier-free guidance: a generator that yields each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from .models.sana import SanaTransformer
from .models.sana_cross_attention import Text, TextInput, distinct
from .models.sana_prepared import PreparedSana
from .schedulers import Scheduler


@dataclass(frozen=True)
class GenerationStep:
    """The state after one step of denoising. All arrays are float32, (B, h, w, latent_channels), and evaluated.

    Attributes:
        step: 1 for the first step that is run.
        steps: how many are run.
        timestep: what the network was told, 1000 (noise) to 0.
        sigma: the noise level of `latents`; 0 after the last step.
        latents: the latents after this step.
        velocity: the network's prediction, after guidance.
        denoised: the prediction of the final latents, fit for a preview.
    """

    step: int
    steps: int
    timestep: float
    sigma: float
    latents: mx.array
    velocity: mx.array
    denoised: mx.array


def guided_steps(scheduler: Scheduler, scale: float, interval: tuple[float, float] | None) -> list[bool]:
    """For each step whether it is guided: two passes of the network instead of one.

    Args:
        scheduler: of any number of steps.
        scale: of the guidance; 1 means none.
        interval: (low, high) guides only where the noise level is low < sigma <= high (Kynkäänniemi et al., "Applying
            Guidance in a Limited Interval", arXiv 2404.07724); None guides everywhere.
    """
    low, high = (0.0, 1.0) if interval is None else interval
    return [scale != 1.0 and low < float(sigma) <= high for sigma in scheduler.sigmas[:-1]]


def denoise(
    dit: SanaTransformer,
    scheduler: Scheduler,
    latents: mx.array,
    text: TextInput,
    *,
    unconditional: TextInput | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    start: int = 0,
) -> Iterator[GenerationStep]:
    """Runs the sampler from `latents` to the end, a step each time the caller asks for one.

    Args:
        dit: the diffusion transformer.
        scheduler: of any number of steps.
        latents: (B, h, w, latent_channels), noise at sigmas[start].
        conditioning: the connector's output. Without guidance (R, N, caption_channels); with guidance (2 R, N,
            caption_channels), the unconditional half first, as in the original. The latents are split evenly and in
            order among the R: 1 is one prompt for all, B a prompt for each.
        guidance_scale: 1 means none, and one pass of the network a step instead of two.
        guidance_interval: see `guided_steps`. Outside of it the velocity is the conditional half's, and nothing else
            is computed.
        attention_mask: (R or 2 R, N) bool, where rows of the conditioning have been padded.
        edge: where the unconditional half is that of zero hidden states, the connector's `reach`: all its positions
            are equal but for so many at each end, and are read once. By default nothing is known of it.
        start: the first step to run; earlier ones are left out.
        consume: whether `dit` may be taken apart to save memory; see `PreparedSana`.
    """
    guided = guided_steps(scheduler, guidance_scale, guidance_interval)
    texts = [Text(text.states, text.mask)]
    if guidance_scale != 1.0:
        assert unconditional is not None
        if unconditional.halo is not None:
            texts.insert(0, distinct(unconditional.states, unconditional.halo))
        else:
            texts.insert(0, Text(unconditional.states, unconditional.mask))
    if not any(guided[start:]):
        texts = texts[-1:]
    timesteps = mx.array(scheduler.timesteps[start:], mx.float32)
    network = PreparedSana(dit, texts, len(texts), timesteps, latents.shape, consume=False)
    del dit  # the prepared network alone holds it
    conditional_alone = network.alone(-1) if any(guided[start:]) else network
    latents = latents.astype(mx.float32)
    previous: mx.array | None = None
    earlier: mx.array | None = None
    steps = len(scheduler.timesteps) - start
    for index in range(start, start + steps):
        run = network if guided[index] else conditional_alone
        velocity = run(index - start, latents).astype(mx.float32)
        if guided[index]:
            without, conditional = mx.split(velocity, 2)
            velocity = without + guidance_scale * (conditional - without)
        latents, denoised = scheduler.step(index, latents, velocity, previous, earlier)
        mx.eval(latents, denoised)
        previous, earlier = denoised, previous
        yield GenerationStep(
            step=index - start + 1,
            steps=steps,
            timestep=float(scheduler.timesteps[index]),
            sigma=float(scheduler.sigmas[index + 1]),
            latents=latents,
            velocity=velocity,
            denoised=denoised,
        )
