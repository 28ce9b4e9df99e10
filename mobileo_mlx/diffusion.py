"""The denoising loop with classifier-free guidance: a generator that yields each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from .models.sana import SanaTransformer
from .models.sana_steps import PreparedSteps, Text, distinct
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


def denoise(
    dit: SanaTransformer,
    scheduler: Scheduler,
    latents: mx.array,
    conditioning: mx.array,
    *,
    guidance_scale: float = 1.0,
    attention_mask: mx.array | None = None,
    edge: int | None = None,
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
        attention_mask: (R or 2 R, N) bool, where rows of the conditioning have been padded.
        edge: where the unconditional half is that of zero hidden states, the connector's `reach`: all its positions
            are equal but for so many at each end, and are read once. By default nothing is known of it.
        start: the first step to run; earlier ones are left out.
    """
    guided = guidance_scale != 1.0
    texts = [Text(conditioning, attention_mask)]
    if guided and edge is not None and attention_mask is None:
        unconditional, conditional = mx.split(conditioning, 2)
        texts = [distinct(unconditional, edge), Text(conditional)]
    timesteps = mx.array(scheduler.timesteps[start:], mx.float32)
    network = PreparedSteps(dit, texts, 2 if guided else 1, timesteps, latents.shape)
    latents, previous = latents.astype(mx.float32), None
    steps = len(scheduler.timesteps) - start
    for index in range(start, start + steps):
        velocity = network(index - start, latents).astype(mx.float32)
        if guided:
            unconditional, conditional = mx.split(velocity, 2)
            velocity = unconditional + guidance_scale * (conditional - unconditional)
        latents, previous = scheduler.step(index, latents, velocity, previous)
        mx.eval(latents, previous)
        yield GenerationStep(
            step=index - start + 1,
            steps=steps,
            timestep=float(scheduler.timesteps[index]),
            sigma=float(scheduler.sigmas[index + 1]),
            latents=latents,
            velocity=velocity,
            denoised=previous,
        )
