"""The ways to run a model that `benchmarks.presets` compares: the default, the presets, and what is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .paired_stats import DEFAULT, Variant


def variants(names: Sequence[str] | None = None) -> list[Variant]:
    """The default and the presets of these names, all of them by default.

    Raises:
        OptionError: an unknown name.
    """
    from mobileo_mlx.checkpoints.quantize import PRESETS
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import SAMPLING_PRESETS

    known = [Variant(name, drawing=dict(options)) for name, options in SAMPLING_PRESETS.items()]
    known += [Variant(name, bits=bits) for name, bits in PRESETS.items() if bits]
    by_name = {variant.name: variant for variant in known}
    if unknown := [name for name in names or () if name not in by_name]:
        raise OptionError(f"there is no preset {unknown[0]!r} to measure; there are {', '.join(by_name)}.")
    return [Variant(DEFAULT), *(by_name[name] for name in (by_name if names is None else names))]


def tried_bits(text: str) -> Variant:
    """Bits as `--quantize` takes them, such as "llm=4,dit=8".

    Raises:
        OptionError: they can't be understood.
    """
    from mobileo_mlx.checkpoints.quantize import parse_quantize

    return Variant(text, bits=parse_quantize(text), tried=True)


def _interval(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(":")))


# Options of drawing that are no plain number.
_READ: Mapping[str, Callable[[str], Any]] = {
    "steps": int,
    "guidance_interval": _interval,
    "scheduler": str,
    "preset": str,
}


def tried_drawing(text: str) -> Variant:
    """Options of drawing, such as "steps=8,guidance_interval=0:0.97".

    Raises:
        OptionError: they can't be understood.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import GenerationOptions

    drawing: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in GenerationOptions.__annotations__ or not equals:
            raise OptionError(f"{text!r} is not of the form option=value,..., as in steps=8,guidance_interval=0:0.97.")
        read = _READ.get(name, float)
        try:
            drawing[name] = read(value)
        except ValueError:
            raise OptionError(f"{name}={value} is not possible.") from None
    return Variant(text, drawing=drawing, tried=True)
