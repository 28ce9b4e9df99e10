"""The denoising loop with classifier-free guidance: a generator that yields each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from .errors import NotFiniteError
from .latents import LARGE_LATENTS
from .models.sana import SanaTransformer
from .models.sana_cross_attention import TextInput
from .models.sana_prepared import PreparedSana
from .ops.finite import all_finite
from .schedulers import Scheduler

_LARGE_GUIDANCE = 20.0  # with a scale above it, what is not finite is not the network's fault


@dataclass(frozen=True)
class GenerationStep:
    """The state after one step of denoising. All arrays are float32, (B, h, w, latent_channels), and evaluated.

    Attributes:
        step: 1 for the first step that is run.
        steps: how many are run.
        timestep: the network's, 1000 (noise) to 0.
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
    donate: bool = False,
) -> Iterator[GenerationStep]:
    """Runs the sampler from `latents` to the end, a step each time the caller asks for one.

    Nothing holds the network once the last step is taken or the generator is closed.

    Args:
        dit: the diffusion transformer.
        scheduler: of any number of steps.
        latents: (B, h, w, latent_channels), noise at sigmas[start].
        text: what the image shows, 1 for all latents or one for each.
        unconditional: what guidance leads away from: zero hidden states through the connector or a negative prompt. It
            may have another length than `text`. Needed where a step is guided, and else not read.
        guidance_scale: 1 means none, and one pass of the network a step instead of two.
        guidance_interval: see `guided_steps`. Outside of it the velocity is that of `text`, and nothing else is
            computed.
        start: the first step to run; earlier ones are left out.
        donate: whether `dit` is used for nothing else, so that weights that no step reads can be freed.

    Raises:
        ValueError: a step is guided, and there is no `unconditional`.
        NotFiniteError: a step gives NaN or infinity.
    """
    guided = guided_steps(scheduler, guidance_scale, guidance_interval)
    if not any(guided[start:]):
        unconditional = None
    elif unconditional is None:
        raise ValueError("Guidance needs an unconditional text.")
    network = PreparedSana(dit, mx.array(scheduler.timesteps[start:], mx.float32), text, unconditional, donate=donate)
    del dit  # the prepared network alone holds it, and goes with this generator
    latents = latents.astype(mx.float32)
    x0_history: tuple[mx.array, ...] = ()
    steps = len(scheduler.timesteps) - start
    for index in range(start, start + steps):
        velocity = network(index - start, latents, guided=guided[index]).astype(mx.float32)
        predicted, x_t = velocity, latents
        if guided[index]:
            without, with_text = mx.split(velocity, 2)
            velocity = without + guidance_scale * (with_text - without)
        latents, denoised = scheduler.step(index, latents, velocity, x0_history)
        finite = all_finite(latents, denoised)
        mx.eval(latents, denoised, finite)  # together: reading the flag waits for nothing more
        if not finite.item():
            raise NotFiniteError("dit", _cause(predicted, x_t, guidance_scale if any(guided) else 1.0, index == start))
        x0_history = (denoised, *x0_history[:1])
        yield GenerationStep(
            step=index - start + 1,
            steps=steps,
            timestep=float(scheduler.timesteps[index]),
            sigma=float(scheduler.sigmas[index + 1]),
            latents=latents,
            velocity=velocity,
            denoised=denoised,
        )


def _cause(predicted: mx.array, x_t: mx.array, guidance_scale: float, first: bool) -> str:
    """Why a step is not finite where that is seen in the step itself, and the remedy; "" where it is the network.

    Args:
        predicted: the network's prediction, before guidance.
        x_t: the latents before the step.
        guidance_scale: 1 where there is no guidance.
        first: whether it is the first step.
    """
    size = float(mx.abs(x_t).max())
    strong = guidance_scale > _LARGE_GUIDANCE
    if strong and (size > LARGE_LATENTS or all_finite(predicted).item()):
        return f"guidance scale {guidance_scale:g} is far too large; choose one from 1 to {_LARGE_GUIDANCE:g}"
    if first and size > LARGE_LATENTS:
        return f"it starts from latents as large as {size:.2g}; give noise, which is near 1"
    return ""
