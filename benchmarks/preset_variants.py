"""The ways to run a model that `benchmarks.presets` compares: the default, the presets, and what is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .paired_stats import DEFAULT, Variant


def variants(names: Sequence[str] | None = None) -> list[Variant]:
    """The default and the presets of these names, all of them by default.

    Raises:
        OptionError: an unknown name.
    """
    from mobileo_mlx.checkpoints.quantize import PRECISIONS
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import SPEEDS

    known = [Variant(name, drawing=dict(options)) for name, options in SPEEDS.items()]
    known += [Variant(name, bits=bits) for name, bits in PRECISIONS.items() if bits]
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


def tried_drawing(text: str) -> Variant:
    """Options of drawing, such as "steps=8,guidance_interval=0:0.97".

    Raises:
        OptionError: they can't be understood.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import GenerationOptions
    from mobileo_mlx.options import declared

    known = declared(GenerationOptions)
    drawing: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in known or not equals:
            raise OptionError(f"{text!r} is not of the form option=value,..., as in steps=8,guidance_interval=0:0.97.")
        drawing[name] = known[name].parse(value)
    return Variant(text, drawing=drawing, tried=True)
