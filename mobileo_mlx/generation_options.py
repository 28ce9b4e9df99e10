"""What to draw and how: options with their defaults, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from .errors import OptionError
from .prompts import check_text
from .schedulers import Scheduler, make_scheduler
from .seeds import checked_seed

if TYPE_CHECKING:
    import mlx.core as mx

    from .models.mobileo import MobileOConfig

STEPS = 20  # of the sampler, as in the original
GUIDANCE_SCALE = 1.5  # likewise
SCHEDULER = "dpm++"  # likewise
MAX_SIDE = 4096  # of a drawing, in pixels; above it the decoder alone takes tens of gigabytes


class Sampling(TypedDict, total=False):
    """What a preset of drawing sets, of `GenerationOptions`."""

    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    scheduler: str


# What can be left out without drawing worse: for each of them `benchmarks.presets` has measured that it follows prompts
# at most one point less often than the default does.
SAMPLING_PRESETS: dict[str, Sampling] = {
    "fast": {"steps": 10, "guidance_interval": (0.0, 0.97)},
    # The third order, and guiding more strongly where it is guided, make up for what fewer steps lose.
    "faster": {"steps": 8, "scheduler": "dpm++3", "guidance_scale": 1.75, "guidance_interval": (0.55, 0.97)},
}


class GenerationOptions(TypedDict, total=False):
    """The options of drawing and editing.

    Fields:
        seed: of the noise (0). Several seeds make several images in one batch, each the same as alone.
        steps: of the sampler (20).
        guidance_scale: above 1 follows the prompt more closely (1.5); 1 is twice as fast.
        guidance_interval: (low, high): guide only where the noise level is low < sigma <= high, which makes the other
            steps twice as fast; by default everywhere, as (0, 1) does.
        scheduler: "dpm++" (the default), "dpm++3", which is of third order instead of second, or "euler".
        flow_shift: of the noise levels; by default the checkpoint's, 3.0 for the published ones.
        width, height: in pixels, multiples of `MobileOConfig.size_multiple`; by default the checkpoint's own size.
        negative_prompt: what not to draw; it stands where the original has zero hidden states.
        initial_latents: (B, height / factor, width / factor, latent_channels), instead of noise from seeds. They
            tell the size, so neither a seed nor a size goes with them.
        preset: settings by name, of `SAMPLING_PRESETS`; what is given beside it counts more.
    """

    seed: int | Sequence[int]
    steps: int | None
    guidance_scale: float | None
    guidance_interval: Sequence[float] | None
    scheduler: str | None
    flow_shift: float | None
    width: int | None
    height: int | None
    negative_prompt: str | None
    initial_latents: mx.array | None
    preset: str | None


@dataclass(frozen=True)
class GenerationSettings:
    """All settings of a drawing, defaults filled in and checked; see `GenerationOptions`.

    Attributes:
        seeds: one for each image; empty where there are initial latents.
        strength: of an edit that starts from its source image; None starts from noise.
    """

    task: Literal["generate", "edit"]
    prompt: str
    negative_prompt: str | None
    seeds: list[int]
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] | None
    scheduler: str
    flow_shift: float
    width: int
    height: int
    strength: float | None


def resolve_settings(
    config: MobileOConfig,
    task: Literal["generate", "edit"],
    prompt: str,
    *,
    strength: float | None = None,
    seed: int | Sequence[int] | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    scheduler: str | None = None,
    flow_shift: float | None = None,
    width: int | None = None,
    height: int | None = None,
    negative_prompt: str | None = None,
    initial_latents: mx.array | None = None,
    preset: str | None = None,
) -> GenerationSettings:
    """Fills in the defaults and checks everything that can be checked without weights.

    Raises:
        PromptError: a prompt is empty.
        OptionError: an option is out of range.
    """
    check_text(prompt, "instruction" if task == "edit" else "prompt")
    if negative_prompt is not None:
        check_text(negative_prompt, "negative prompt")
    sampling = sampling_preset(preset)
    if guidance_scale is None:
        guidance_scale = sampling.get("guidance_scale", GUIDANCE_SCALE)
    if not (math.isfinite(guidance_scale) and guidance_scale >= 1):
        raise OptionError(f"guidance scale {guidance_scale} is not possible; choose 1 (none) or more.")
    if negative_prompt is not None and guidance_scale == 1:
        raise OptionError("a negative prompt needs guidance; choose a guidance scale above 1.")
    steps = sampling.get("steps", STEPS) if steps is None else steps
    guidance_interval = sampling.get("guidance_interval") if guidance_interval is None else guidance_interval
    seeds: list[int] = []
    if initial_latents is not None:
        given = {"seed": seed, "width": width, "height": height}
        if clashing := [name for name, value in given.items() if value is not None]:
            raise OptionError(f"initial latents stand for {', '.join(clashing)}; give only one of them.")
        width, height = _size_of(config, initial_latents)
    else:
        seeds = _seeds(0 if seed is None else seed)
    width, height = _checked_size(config, width, height)
    settings = GenerationSettings(
        task=task,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seeds=seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_interval=None if guidance_interval is None else _interval(guidance_interval),
        scheduler=sampling.get("scheduler", SCHEDULER) if scheduler is None else scheduler,
        flow_shift=config.flow_shift if flow_shift is None else flow_shift,
        width=width,
        height=height,
        strength=strength,
    )
    make_schedule(config, settings)
    return settings


def make_schedule(config: MobileOConfig, settings: GenerationSettings) -> tuple[Scheduler, int]:
    """The sampler, and the first of its steps that is run: the first whose noise level is at most `strength`.

    Raises:
        OptionError: the sampler is unknown, or steps, shift or strength are out of range.
    """
    scheduler = make_scheduler(settings.scheduler, settings.steps, settings.flow_shift, config.num_train_timesteps)
    strength = settings.strength
    if strength is None or strength == 1:
        return scheduler, 0
    if not 0 < strength < 1:
        raise OptionError(f"strength {strength} is not possible; choose a number above 0 and up to 1.")
    start = next(i for i, sigma in enumerate(scheduler.sigmas) if sigma <= strength)
    if start == settings.steps:
        raise OptionError(f"strength {strength} leaves none of the {start} steps; choose more of either.")
    return scheduler, start


def sampling_preset(name: str | None) -> Sampling:
    """The settings of a preset; nothing where there is none.

    Raises:
        OptionError: an unknown name.
    """
    if name is None:
        return {}
    if name not in SAMPLING_PRESETS:
        raise OptionError(f"there is no preset {name!r} of drawing; there are {', '.join(SAMPLING_PRESETS)}.")
    return SAMPLING_PRESETS[name]


def _interval(given: Any) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        raise OptionError(f"guidance interval {given!r} is not possible; give two noise levels.") from None
    if not 0 <= low < high <= 1:
        raise OptionError(f"guidance interval {low:g} to {high:g} is not possible; choose 0 <= low < high <= 1.")
    return low, high


def _seeds(seed: Any) -> list[int]:
    try:
        several = list(seed)
    except TypeError:
        several = [seed]
    if not several:
        raise OptionError("at least one seed is needed; give a whole number from 0 to 2**64 - 1.")
    return [checked_seed(one) for one in several]


def _checked_size(config: MobileOConfig, width: int | None, height: int | None) -> tuple[int, int]:
    width = config.default_size[0] if width is None else width
    height = config.default_size[1] if height is None else height
    multiple = config.size_multiple
    if not (multiple <= width <= MAX_SIDE and multiple <= height <= MAX_SIDE):
        raise OptionError(f"size {width}x{height} is not possible; each side is {multiple} to {MAX_SIDE} pixels.")
    if width % multiple or height % multiple:
        nearest = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
        raise OptionError(
            f"size {width}x{height} is not possible: sides are multiples of {multiple}; "
            f"{nearest[0]}x{nearest[1]} would do."
        )
    return width, height


def _size_of(config: MobileOConfig, latents: Any) -> tuple[int, int]:
    channels, factor = config.dit.in_channels, config.vae.factor
    if latents.ndim != 4 or latents.shape[-1] != channels:
        raise OptionError(f"initial latents have the shape {latents.shape} instead of (B, h, w, {channels}).")
    return latents.shape[2] * factor, latents.shape[1] * factor
