"""Options that several commands share, and how their text is read.

Defaults are None throughout: an option that is not given is not passed on, so that the library's own defaults
hold, and `--from-image` can tell what was given.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mobileo_mlx import MobileO

DEFAULT_MODEL = "Amshaker/Mobile-O-0.5B"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A bundled name, a folder (upstream's layout or ours), or a repository on the hub. "
        f"[default: {DEFAULT_MODEL}]",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="Compute in float16, bfloat16 or float32. [default: by device]"),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="PART=BITS,...", help="Quantize parts while loading, e.g. llm=4,dit=8."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Bits of all parts at once: small, balanced or full; --quantize changes single parts.",
    ),
]
DrawingPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Bits of all parts at once: small, balanced or full; or less work for each drawing: fast or faster; or "
        "one of each, as small,fast. Single options change what it says.",
    ),
]
KeepLoaded = Annotated[
    bool | None,
    typer.Option(
        "--keep-loaded/--staged",
        help="Keep all parts in memory, or free each when what comes next does not need it: slower with many images, "
        "and about half the memory. [default: staged for one image]",
    ),
]
KeepLoadedInChat = Annotated[
    bool,
    typer.Option(
        "--keep-loaded/--staged",
        help="Keep all parts in memory, or free each when what comes next does not need it: slower, with less memory.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="DIR", help="Apply an adapter that finetune, or the PEFT library, wrote."),
]
AdapterScale = Annotated[
    float | None,
    typer.Option(
        "--adapter-scale",
        metavar="X",
        help="How strongly the adapter changes the model: 0 not at all, 1 as trained. [default: 1]",
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show timings per stage and peak memory on standard error.")
]

# Drawing: generate and edit.
PromptFile = Annotated[Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the text from a file.")]
Seed = Annotated[
    list[int] | None,
    typer.Option("--seed", metavar="SEED", help="Repeatable: one image each. [default: random]"),
]
NumImages = Annotated[
    int | None,
    typer.Option(
        "--num-images",
        "-n",
        metavar="N",
        help="Images per seed: seed, seed+1, and so on. [default: 1]",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Denoising steps. [default: 20]")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        metavar="X",
        help="How closely to follow the text; 1 is without guidance, and twice as fast. [default: 1.5]",
    ),
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        metavar="LOW,HIGH",
        help="Guide only at noise levels above LOW and up to HIGH, from 0 to 1; other steps are twice as fast. "
        "[default: 0,1]",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="NAME", help="dpm++, dpm++3 (third order) or euler. [default: dpm++]"),
]
FlowShift = Annotated[
    float | None,
    typer.Option("--flow-shift", metavar="X", help="Above 1: more steps at high noise. [default: the model's, 3.0]"),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="Width and height in pixels, multiples of 32. [default: the model's]",
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option("--negative-prompt", metavar="TEXT", help="What guidance leads away from."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATTERN",
        help="Name of the image, with {prompt}, {seed}, {index} and {model}; or a folder. "
        "A name that is taken gets -1, -2, ... [default: {prompt}-{seed}.png]",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Previews = Annotated[
    Path | None,
    typer.Option(
        "--previews",
        metavar="DIR",
        help="Also save what the model sees at each step, and a contact sheet of it.",
    ),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Do not write prompt and settings into the PNG.")]
FromImage = Annotated[
    Path | None,
    typer.Option(
        "--from-image",
        metavar="FILE.png",
        help="Take text and settings from an image's metadata; options that are given win.",
    ),
]

# Answering: ask and chat.
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", help="Length of an answer at most. [default: 256]"),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="0 always takes the likeliest token; above, sample. [default: 0]",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Sample among the likeliest tokens that sum up to P. [default: 1]",
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", metavar="X", help="Above 1: repeat less. [default: none]"),
]
SamplingSeed = Annotated[
    int | None,
    typer.Option("--seed", metavar="SEED", help="Seed of the sampling. [default: 0]"),
]


def given(**options: object) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def loading(
    *,
    model: str | None,
    dtype: str | None,
    quantize: str | None,
    preset: str | None,
    adapter: str | None,
    adapter_scale: float | None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What to load the model with: the options that are given, else what is known from an image's metadata.

    Raises:
        OptionError: a malformed quantization, an unknown preset, or a scale of no adapter.
    """
    from mobileo_mlx.errors import OptionError

    arguments = dict(known or {})
    if adapter is not None:
        arguments.pop("adapter_scale", None)  # it was another adapter's
    arguments |= given(model=model, dtype=dtype, quantize=parse_quantize(quantize, preset))
    arguments |= given(adapter=adapter, adapter_scale=adapter_scale)
    if arguments.get("adapter") == "":  # how a replay gets rid of one
        del arguments["adapter"]
    if "adapter_scale" in arguments and "adapter" not in arguments:
        raise OptionError("--adapter-scale is that of an adapter: give --adapter DIR, too.")
    return arguments


def load(model: str = DEFAULT_MODEL, **arguments: Any) -> MobileO:
    """The model, with download bars where somebody can see them.

    Raises:
        MobileOError: no such model, not reachable, damaged, or a precision that can't be.
    """
    from mobileo_mlx import MobileO

    return MobileO.load(model, progress=sys.stderr.isatty(), **arguments)


def parse_size(text: str | None) -> dict[str, int]:
    """`512x384` as width and height; nothing given is an empty dictionary.

    Raises:
        OptionError: not of the form WIDTHxHEIGHT.
    """
    from mobileo_mlx.errors import OptionError

    if text is None:
        return {}
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text.strip())
    if match is None:
        raise OptionError(f"--size {text}: write WIDTHxHEIGHT in pixels, for example 512x512.")
    return {"width": int(match[1]), "height": int(match[2])}


def parse_interval(text: str | None) -> dict[str, list[float]]:
    """`0.3,0.95` as a guidance interval; nothing given is an empty dictionary. Whether it can be, the library knows.

    Raises:
        OptionError: not of the form LOW,HIGH.
    """
    from mobileo_mlx.errors import OptionError

    if text is None:
        return {}
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise OptionError(f"--guidance-interval {text}: write LOW,HIGH, for example 0.3,0.95.") from None
    return {"guidance_interval": [low, high]}


def parse_preset(text: str | None) -> tuple[str | None, str | None]:
    """`small`, `fast` or `small,fast`: the names of a preset of bits and of one of drawing.

    Raises:
        OptionError: an unknown name, or two of a kind.
    """
    from mobileo_mlx.checkpoints.quantize import PRESETS
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import SAMPLING_PRESETS

    names = [] if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PRESETS and name not in SAMPLING_PRESETS]:
        known = ", ".join((*PRESETS, *SAMPLING_PRESETS))
        raise OptionError(f"there is no preset {unknown[0]!r}; there are {known}.")
    bits, sampling = ([name for name in names if name in known] for known in (PRESETS, SAMPLING_PRESETS))
    if len(bits) > 1 or len(sampling) > 1:
        raise OptionError(f"--preset {text}: only one of {', '.join(bits if len(bits) > 1 else sampling)} can be.")
    return (bits[0] if bits else None), (sampling[0] if sampling else None)


def parse_quantize(text: str | None, preset: str | None = None) -> dict[str, int] | None:
    """`llm=4,dit=8` over the bits of a preset, as bits per component; None where neither is given.

    Raises:
        OptionError: malformed, an unknown preset or component, or bits that can't be.
    """
    if text is None and preset is None:
        return None
    from mobileo_mlx.checkpoints.quantize import parse_quantize as parse
    from mobileo_mlx.checkpoints.quantize import resolve_bits

    return resolve_bits(parse(text) if text is not None else None, preset)


def expand_seeds(seeds: Sequence[int] | None, count: int | None) -> list[int]:
    """The seeds of all images: `count` in a row from each given seed, or from a random one; no repeats.

    Raises:
        OptionError: `count` is not from 1 to 10000, or a seed is out of range.
    """
    from mobileo_mlx.errors import OptionError

    count = 1 if count is None else count
    if not 1 <= count <= 10_000:
        raise OptionError(f"--num-images {count}: choose a number from 1 to 10000.")
    if wrong := [seed for seed in seeds or () if not 0 <= seed <= 2**64 - count]:
        raise OptionError(f"--seed {wrong[0]}: choose a number from 0 to 2**64 - {count}.")
    starts = list(seeds) if seeds else [secrets.randbelow(2**32)]
    return list(dict.fromkeys(start + i for start in starts for i in range(count)))
