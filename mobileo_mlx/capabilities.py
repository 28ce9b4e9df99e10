"""What this program can do, as JSON can hold it: for programs that offer its options to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ._version import __version__
from .generation_options import OPTIONS, SPEED_COSTS, SPEED_NAMES, SPEEDS, AnswerOptions, ModelSpeeds
from .image_settings import FORMATS
from .options import Option, declared


def capabilities(model: ModelSpeeds | None = None) -> dict[str, Any]:
    """The tasks with their options, and the names that options take; derived from where each is declared.

    Args:
        model: the speeds of one model, whose defaults and choices are then those that are said; by default all speeds
            that there are, without what `turbo` stands for.

    Returns:
        "version"; "tasks": by name a list of options, each with "name", "type", "help", and where there are any
        "default", "choices", "minimum" or "exclusive_minimum", "maximum", "metavar" and "repeatable"; "speeds": the
        options that each stands for; "speed_costs": what was measured of each, by task; "precisions": bits by
        component; "dtypes"; "components"; "image_formats".
    """
    from .checkpoints import precision
    from .checkpoints.quantize import PRECISIONS
    from .models.mobileo import COMPONENTS

    drawing = {} if model is None else _of_model(model)
    tasks = {
        str(task): [_describe(drawing.get(o.name, o)) for o in _of(found).values()] for task, found in OPTIONS.items()
    }
    tasks["answer"] = [_describe(option) for option in _of(AnswerOptions).values()]
    speeds = SPEEDS if model is None else model.named
    return {
        "version": __version__,
        "tasks": tasks,
        "speeds": speeds,
        "speed_costs": {name: costs for name, costs in SPEED_COSTS.items() if name in speeds},
        "precisions": {name: dict(bits) for name, bits in PRECISIONS.items()},
        "dtypes": list(precision.DTYPES),
        "components": list(COMPONENTS),
        "image_formats": list(dict.fromkeys(FORMATS.values())),
    }


def _of_model(speeds: ModelSpeeds) -> dict[str, Option]:
    """The options of drawing that are others in one model."""
    known = declared(OPTIONS["generate"])
    usual = {name: replace(known[name], default=value, default_help="") for name, value in speeds.usual.items()}
    return {**usual, "speed": replace(known["speed"], choices=[name for name in SPEED_NAMES if speeds.has(name)])}


def _of(options: type) -> Mapping[str, Option]:
    """Without those that are no values in JSON, and old spellings."""
    return {name: option for name, option in declared(options).items() if option.kind is not None and name != "preset"}


def _describe(option: Option) -> dict[str, Any]:
    kinds: dict[type | None, str] = {int: "integer", float: "number", str: "string", bool: "boolean", list: "array"}
    found: dict[str, Any] = {"name": option.name, "type": kinds[option.kind], "help": option.help}
    optional = {
        "default": option.default,
        "default_help": option.default_help or None,
        "metavar": option.metavar,
        "choices": list(option.choices) or None,
        "exclusive_minimum" if option.above else "minimum": _finite(option.low),
        "maximum": _finite(option.high),
        "repeatable": option.several or None,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None
