"""How long a run is, and how its learning rate goes, where it was given more steps later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, OptionError
from .stages import warmup_cosine


@dataclass(frozen=True)
class Schedule:
    """The lengths of a run.

    A run that is given more steps does not go back to what it did: from where it stands its learning rate rises and
    falls once more, over the steps that are left, with the stage's share of them for the rise.

    Attributes:
        steps: of the whole run.
        start: the step at which the learning rate began to rise, for the last time.
        first: steps that the run had at first, over which the connector's temperature falls; 0 for all.
    """

    steps: int
    start: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.first or self.steps)

    @classmethod
    def from_state(cls, value: Any, path: Path) -> Schedule:
        """The one that a checkpoint keeps, as JSON.

        Raises:
            CheckpointError: it is something else.
        """
        names = [field.name for field in fields(cls)]
        if isinstance(value, dict) and value.keys() == set(names):
            numbers = [value[name] for name in names]
            if all(type(number) is int and 0 <= number < 2**31 for number in numbers) and numbers[1] < numbers[0]:
                return cls(*numbers)
        raise CheckpointError(f"'{path}' is damaged (its schedule); remove it, and the one before it is used.")

    def extended(self, steps: int, done: int) -> Schedule:
        """The same with so many steps in all, of which some are done.

        Raises:
            OptionError: they are fewer.
        """
        if steps < self.steps:
            raise OptionError(
                f"--steps {steps} is less than the {self.steps} steps of this run; choose as many or more."
            )
        return self if steps == self.steps else Schedule(steps, done, self.first)

    def factor(self, warmup: float, floor: float) -> Callable[[mx.array], mx.array]:
        """The factor of all learning rates, by the step from 0; see `mobileo_mlx.training.stages.warmup_cosine`."""
        factor = warmup_cosine(self.steps - self.start, warmup, floor)
        return (lambda step: factor(mx.maximum(step, self.start) - self.start)) if self.start else factor

    def describe(self, done: int) -> str:
        """What a run that goes on after so many steps does."""
        text = f"going on after step {done} of {self.steps}"
        return f"{text}; from step {self.start} on the learning rate rises and falls once more" if self.start else text
