"""What a model's speeds stand for: its few-step adapters say with which options they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .checkpoints.adapter_config import CONFIG_FILE
from .checkpoints.adapters import Adapter
from .errors import CheckpointError, OptionError
from .generation_options import SAMPLING, SPEEDS, TURBO, GenerationOptions, ModelSpeeds
from .options import declared


def speeds_of(turbo: Adapter | None, adapters: Sequence[Adapter]) -> ModelSpeeds:
    """The speeds of a model.

    Args:
        turbo: the few-step adapter that it brings along.
        adapters: that the user has given. One of few steps takes the place of `turbo`.

    Raises:
        CheckpointError: a few-step adapter says something about drawing that can't be.
        OptionError: the user has given several of them.
    """
    students = [adapter for adapter in adapters if adapter.drawing]
    if len(students) > 1:
        names = " and ".join(f"'{adapter.name}'" for adapter in students)
        raise OptionError(f"the adapters {names} each draw in few steps of their own; give one of them.")
    if students:
        return ModelSpeeds({}, drawing_of(students[0]), student=True)
    return ModelSpeeds(SPEEDS if turbo is None else {**SPEEDS, TURBO: drawing_of(turbo)})


def drawing_of(adapter: Adapter) -> dict[str, Any]:
    """The options that a few-step adapter was trained for, checked as those of a drawing are; empty for all others.

    Raises:
        CheckpointError: there is another name among them, or a value that can't be.
    """
    source, known = adapter.path / CONFIG_FILE, declared(GenerationOptions)
    values = {}
    for name, value in adapter.drawing.items():
        if name not in SAMPLING:
            raise CheckpointError(f"'{source}' has drawing.{name[:60]}; only {', '.join(SAMPLING)} can be there.")
        try:
            if value is not None:
                values[name] = known[name].checked(value)
        except OptionError as error:
            raise CheckpointError(f"'{source}' has a drawing that can't be: {error}") from error
    return values
