"""The options of all tasks, and what a task makes of them: settings, complete and checked before anything is computed.

An option is one field here, and its use. The parameters of the commands and their help, the checks, the metadata and
their replay follow from the field; see `mobileo_mlx.options`.
"""

# Annotations are evaluated here: they are the declarations.

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from .errors import OptionError
from .options import Option, declared, python_number, resolve_options, shown
from .prompts import check_text

if TYPE_CHECKING:
    import mlx.core as mx
    from typing_extensions import Unpack

    from .models.mobileo import MobileOConfig
    from .schedulers import Scheduler

Task = Literal["generate", "edit"]

MAX_CANDIDATES = 100  # of one image
MAX_SIDE = 4096  # of an image, in pixels; above it the decoder alone takes tens of gigabytes

# Values of `GenerationOptions` by the name of a speed: what can be left out without drawing worse. For each of them
# `benchmarks.presets` has measured that it follows prompts at most one point less often than the default does.
SPEEDS: dict[str, dict[str, Any]] = {
    "fast": {"steps": 10, "guidance_interval": (0.0, 0.97)},
    # The third order, and guiding more strongly where it is guided, make up for what fewer steps lose.
    "faster": {"steps": 8, "scheduler": "dpm++3", "guidance_scale": 1.75, "guidance_interval": (0.55, 0.97)},
}

# Speeds that are no values alone: of `turbo` a model says itself what it stands for, where it brings along the weights.
TURBO = "turbo"
SPEED_NAMES = ("default", *SPEEDS, TURBO)

# What a speed can stand for, and what a few-step adapter can say about how it is drawn with.
SAMPLING = ("steps", "guidance_scale", "guidance_interval", "scheduler", "flow_shift")

# What they cost, by speed and task, measured on the small model: of `n` pictures, the percentage that does what the
# text says, here and with the default options, and how many times as fast it is. docs/presets.md has the intervals.
SPEED_COSTS: dict[str, dict[Task, dict[str, float]]] = {
    "fast": {
        "generate": {"n": 2000, "right": 98.4, "default_right": 98.7, "speed": 1.72},
        "edit": {"n": 1000, "right": 99.3, "default_right": 99.1, "speed": 1.56},
    },
    "faster": {
        "generate": {"n": 2000, "right": 98.5, "default_right": 98.7, "speed": 2.01},
        "edit": {"n": 1000, "right": 99.3, "default_right": 99.1, "speed": 1.80},
    },
    # Of the small model's own adapter; docs/few-steps.md.
    "turbo": {
        "generate": {"n": 2000, "right": 98.8, "default_right": 98.7, "speed": 3.71},
        "edit": {"n": 1000, "right": 99.0, "default_right": 99.1, "speed": 2.54},
    },
}


def check_seed(seed: Any) -> int:
    """A seed of random keys as an int; NumPy's whole numbers are understood.

    Raises:
        OptionError: it is no whole number, or out of range.
    """
    seed = python_number(seed)
    try:
        # True is 1 to Python, but who writes it has mistaken the option.
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise OptionError(f"seed {shown(seed)} is not possible; choose a whole number from 0 to 2**64 - 1.")
    return number


def _check_seeds(seed: Any) -> list[int]:
    try:
        several = list(seed)
    except TypeError:
        several = [seed]
    if not several:
        raise OptionError("at least one seed is needed; give a whole number from 0 to 2**64 - 1.")
    return [check_seed(one) for one in several]


def _check_interval(given: Any) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"guidance interval {shown(given)} is not possible; give two noise levels.") from None
    if not 0 <= low < high <= 1:
        raise OptionError(f"guidance interval {low:g} to {high:g} is not possible; choose 0 <= low < high <= 1.")
    return low, high


def _check_stop(given: Any) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise OptionError(f"stop {shown(given)} is not possible; give a text, or several in a list.")
    return stops


def _read_interval(text: str) -> tuple[float, float]:
    low, high = map(float, re.split("[,:]", text))
    return low, high


class GenerationOptions(TypedDict, total=False):
    """The options of drawing an image; None stands for the default."""

    seed: Annotated[
        int | Sequence[int] | None,
        Option("Seed of the noise; repeatable: one image each.", 0, metavar="SEED", check=_check_seeds, recorded=False),
    ]
    steps: Annotated[int | None, Option("Denoising steps.", 20, metavar="N", low=1, high=10_000, range="1 to 10000")]
    guidance_scale: Annotated[
        float | None,
        Option(
            "How closely to follow the text; 1 is without guidance, and twice as fast.",
            1.5,
            metavar="X",
            low=1,
            range="1 (none) or more",
        ),
    ]
    guidance_interval: Annotated[
        Sequence[float] | None,
        Option(
            "Guide only at noise levels above LOW and up to HIGH, from 0 to 1; other steps are twice as fast.",
            metavar="LOW,HIGH",
            check=_check_interval,
            read=_read_interval,
            example="0.3,0.95",
            default_help="0,1",
        ),
    ]
    scheduler: Annotated[
        str | None,
        Option("dpm++, dpm++3 (third order) or euler.", "dpm++", metavar="NAME", choices=("dpm++", "dpm++3", "euler")),
    ]
    flow_shift: Annotated[
        float | None,
        Option(
            "Above 1: more steps at high noise.",
            metavar="X",
            low=0,
            above=True,
            range="a number above 0, such as 3",
            default_help="the model's, 3.0",
        ),
    ]
    width: Annotated[int | None, Option("In pixels; the default is the model's.", metavar="N", on_command=False)]
    height: Annotated[int | None, Option("In pixels; the default is the model's.", metavar="N", on_command=False)]
    negative_prompt: Annotated[
        str | None,
        Option(
            "What the image should not show.",
            metavar="TEXT",
            check=lambda text: check_text(text, "negative prompt"),
        ),
    ]
    initial_latents: Annotated[
        "mx.array | None",
        Option(
            "(B, height / factor, width / factor, latent_channels) float32, instead of noise from seeds. They give "
            "the size, so neither a seed nor a size goes with them.",
            on_command=False,
            recorded=False,
        ),
    ]
    speed: Annotated[
        str | None,
        Option(
            "Less work for each image: fast, faster, or turbo where the model has it. Single options change what it "
            "says.",
            metavar="NAME",
            choices=SPEED_NAMES,
            default_help="default",
        ),
    ]
    preset: Annotated[str | None, Option("The old spelling of `speed`.", on_command=False, recorded=False)]
    # Neither is recorded: what was kept has a seed of its own, with which it is drawn again at once.
    best_of: Annotated[
        int | None,
        Option(
            "Draw N candidates, ask the model itself about each, and keep the best.",
            1,
            metavar="N",
            low=1,
            high=MAX_CANDIDATES,
            range=f"1 to {MAX_CANDIDATES}",
            recorded=False,
        ),
    ]
    until_pass: Annotated[
        bool | None,
        Option(
            "With --best-of: draw candidates one after the other, and stop at the first that is as it should be.",
            False,
            recorded=False,
        ),
    ]


class EditOptions(GenerationOptions, total=False):
    """The options of editing an image."""

    strength: Annotated[
        float | None,
        Option(
            "Start from the image itself at this noise level, above 0 and up to 1; small values keep more of it.",
            metavar="X",
            low=0,
            above=True,
            high=1,
            range="a number above 0 and up to 1",
            default_help="from pure noise",
        ),
    ]


class AnswerOptions(TypedDict, total=False):
    """The options of answering a question; None stands for the default."""

    max_tokens: Annotated[
        int | None,
        Option("Length of an answer at most; less where the context ends.", 256, metavar="N", low=1, range="1 or more"),
    ]
    temperature: Annotated[
        float | None,
        Option(
            "0 always takes the likeliest token; above, sample.",
            0.0,
            metavar="T",
            low=0,
            range="0 or more",
            default_help="0",
        ),
    ]
    top_p: Annotated[
        float | None,
        Option(
            "Sample among the likeliest tokens that sum up to P.",
            1.0,
            metavar="P",
            low=0,
            above=True,
            high=1,
            range="a number above 0 and up to 1",
            default_help="1",
        ),
    ]
    # Only tokens that were generated before become less likely (arXiv 1909.05858); the prompt does not count, as in
    # the original.
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Above 1: repeat less.",
            metavar="X",
            low=0,
            above=True,
            range="a number above 0, such as 1.1",
            default_help="none",
        ),
    ]
    seed: Annotated[int | None, Option("Seed of the sampling.", 0, metavar="SEED", check=check_seed)]
    stop: Annotated[
        str | Sequence[str] | None,
        Option("Texts that end the answer; it ends in front of them.", check=_check_stop, on_command=False),
    ]


OPTIONS: dict[Task, type] = {"generate": GenerationOptions, "edit": EditOptions}


def recorded_options() -> dict[str, Option]:
    """The options of all tasks that settings hold, by name."""
    known = {name: option for options in OPTIONS.values() for name, option in declared(options).items()}
    return {name: option for name, option in known.items() if option.recorded}


class _Settings:
    """Gives each option the place of an attribute, so that a new one needs no second declaration."""

    options: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("options", {})
        if name not in options:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return options[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.options]


@dataclass(frozen=True)
class GenerationSettings(_Settings):
    """All settings of an image or several, complete and checked. Each option is an attribute, too: `settings.steps`.

    Attributes:
        task: "generate" or "edit".
        prompt: the text.
        seeds: one for each image; empty where there are initial latents.
        options: `recorded_options` by name; None for those of the other task.
        schedule: the sampler, and the index of its first step that is run: of the first whose noise level is at most
            `strength`.
    """

    task: Task
    prompt: str
    seeds: list[int]
    options: dict[str, Any]
    schedule: "tuple[Scheduler, int]" = field(repr=False, compare=False)


class AnswerSettings(_Settings):
    """Options of answering, complete and checked. Each is an attribute: `settings.temperature`.

    Args:
        options: see `AnswerOptions`.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(self, **options: "Unpack[AnswerOptions]") -> None:
        self.options = resolve_options(AnswerOptions, options)


@dataclass(frozen=True)
class ModelSpeeds:
    """What the speeds stand for in one model: values of `GenerationOptions` by name.

    Attributes:
        named: by speed; without `turbo` where the model brings no few-step adapter along.
        usual: where no speed is asked for, instead of the declared defaults.
        student: whether the user has given a few-step adapter, of which `usual` is.
    """

    named: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SPEEDS)
    usual: Mapping[str, Any] = field(default_factory=dict)
    student: bool = False

    def has(self, speed: str) -> bool:
        """Whether `values` knows it."""
        return speed in self.named or speed == "default" or (speed == TURBO and self.student)

    def values(self, speed: str | None) -> Mapping[str, Any]:
        """What takes the place of declared defaults.

        Raises:
            OptionError: the model does not have this speed.
        """
        if speed is None or self.has(speed):
            return self.named.get(speed or "default", self.usual)
        if self.student:
            raise OptionError(
                f"speed {speed} is for drawing in many steps, and an adapter is loaded that draws in few of its own; "
                "leave out one of the two."
            )
        raise OptionError(
            f"speed {speed} takes a few-step adapter, and this model brings none along: train one (mobileo-mlx "
            f"finetune --objective consistency) and give it with --adapter, or choose {' or '.join(self.named)}."
        )


def check_options(
    task: Task, prompt: str, options: Mapping[str, Any], speeds: ModelSpeeds | None = None
) -> dict[str, Any]:
    """Checks all that needs no weights, and fills in the defaults that depend on none.

    Args:
        task: which one.
        prompt: the text.
        options: by name.
        speeds: of the model; None where it is not known yet, and with it what `turbo` stands for.

    Returns:
        the options by name; of `speed` only what its values do not say, which is `TURBO` or None.

    Raises:
        PromptError: a prompt is empty.
        OptionError: an option is out of range.
    """
    check_text(prompt, "instruction" if task == "edit" else "prompt")
    given = {name: value for name, value in options.items() if value is not None}
    if "preset" in given:
        if "speed" in given:
            raise OptionError("preset is the old name of speed; give only speed.")
        given["speed"] = given.pop("preset")
    speed = given.get("speed")
    if not isinstance(speed, str) or speed not in SPEED_NAMES:  # which is refused below, unless there is none
        defaults: Mapping[str, Any] = {} if speeds is None else speeds.usual
    else:
        defaults = SPEEDS.get(speed, {}) if speeds is None else speeds.values(speed)
    values = resolve_options(OPTIONS[task], given, defaults)
    values["speed"] = TURBO if speed == TURBO and not (speeds is not None and speeds.student) else None
    if values["negative_prompt"] is not None and values["guidance_scale"] == 1:
        raise OptionError(
            "a negative prompt needs guidance; choose a guidance scale above 1, or no negative prompt (a replay leaves "
            "out that of its image with --negative-prompt '')."
        )
    if values["until_pass"] and values["best_of"] == 1:
        raise OptionError("until pass stops among several candidates; give best of 2 or more, too.")
    if values["initial_latents"] is not None:
        if clashing := [name for name in ("seed", "width", "height") if name in given]:
            raise OptionError(f"initial latents stand for {', '.join(clashing)}; give only one of them.")
        if values["best_of"] > 1:
            raise OptionError("best of several needs several seeds; leave out the initial latents.")
        values["seed"] = []
    return values


def resolve(
    config: "MobileOConfig",
    task: Task,
    prompt: str,
    speeds: ModelSpeeds | None = None,
    **options: "Unpack[EditOptions]",
) -> GenerationSettings:
    """Makes settings of options: fills in the defaults, and checks everything that can be checked without weights.

    Args:
        config: the model's.
        task, prompt, speeds, options: see `check_options`.

    Raises:
        PromptError: a prompt is empty.
        OptionError: an option is out of range.
    """
    values = check_options(task, prompt, options, speeds)
    if (latents := values["initial_latents"]) is not None:
        values["width"], values["height"] = _size_of(config, latents)
    width, height = _check_size(config, values["width"], values["height"])
    values["width"], values["height"] = width, height
    if values["flow_shift"] is None:
        values["flow_shift"] = config.flow_shift
    return GenerationSettings(
        task=task,
        prompt=prompt,
        seeds=values["seed"],
        options={name: values.get(name) for name in recorded_options()},
        schedule=_make_schedule(config, values),
    )


def _make_schedule(config: "MobileOConfig", values: Mapping[str, Any]) -> "tuple[Scheduler, int]":
    from .schedulers import make_scheduler

    steps, strength = values["steps"], values.get("strength")
    scheduler = make_scheduler(values["scheduler"], steps, values["flow_shift"], config.num_train_timesteps)
    if strength is None or strength == 1:
        return scheduler, 0
    start = next(i for i, sigma in enumerate(scheduler.sigmas) if sigma <= strength)
    if start == steps:
        least = math.ceil(100 * float(scheduler.sigmas[steps - 1])) / 100
        raise OptionError(
            f"strength {strength} leaves none of the {start} steps; choose {least:g} or more, or more steps."
        )
    return scheduler, start


def _check_size(config: "MobileOConfig", width: int | None, height: int | None) -> tuple[int, int]:
    width = config.default_size[0] if width is None else width
    height = config.default_size[1] if height is None else height
    multiple = config.size_multiple
    if not (multiple <= width <= MAX_SIDE and multiple <= height <= MAX_SIDE):
        sides = f"{shown(width)}x{shown(height)}"
        raise OptionError(f"size {sides} is not possible; each side is {multiple} to {MAX_SIDE} pixels.")
    if width % multiple or height % multiple:
        nearest = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
        raise OptionError(
            f"size {width}x{height} is not possible: sides are multiples of {multiple}; "
            f"{nearest[0]}x{nearest[1]} would do."
        )
    return width, height


def _size_of(config: "MobileOConfig", latents: Any) -> tuple[int, int]:
    channels, factor = config.dit.in_channels, config.vae.factor
    if latents.ndim != 4 or latents.shape[-1] != channels:
        raise OptionError(f"initial latents have the shape {latents.shape} instead of (B, h, w, {channels}).")
    return latents.shape[2] * factor, latents.shape[1] * factor
