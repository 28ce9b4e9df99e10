"""How a network states its blocks: as steps, of which each says what a pixel of its result sees.

There is one statement of a block. `__call__` follows it on whole maps, as training does; `bands.run` follows it for
inference in little memory, on bands of rows where a map is large.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# A module or a function of maps (B, H, W, C). What is of none of the classes below sees each pixel alone.
Step = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Window:
    """A convolution of some rows of a map.

    Attributes:
        kernel: side of the kernel, odd; the map is padded by half of it.
        stride: of both directions.
        scale: how many times as large the map is made before the convolution.
        growth: elements of the result / elements of the map.
        apply: from (B, (n - 1) stride + kernel, W, C) to the n scale rows of the result. Of a whole map, which has no
            rows of zeros yet, their number above and below is the second argument.
    """

    kernel: int
    stride: int
    scale: int
    growth: float
    apply: Callable[..., mx.array]


class Windowed:
    """A layer whose pixels see some rows around them."""

    def window(self) -> Window:
        """What it does with rows, in inference. Whatever is made of its weights is made once for all of them."""
        raise NotImplementedError


class WholeMap(nn.Module):
    """A block whose pixels see all others."""


class Chain(nn.Module):
    """A block that is a sequence of steps."""

    def steps(self) -> Sequence[Any]:
        """Steps, chains among them, in order."""
        raise NotImplementedError

    def __call__(self, x: mx.array) -> mx.array:
        return follow(self.steps(), x)


class Residual:
    """Steps with a shortcut around them.

    Args:
        steps: what the shortcut goes around.
        join: the result, of the input and what the steps make of it.
        widest: how many times as many elements as its input the largest map between the steps has, where it is not a
            convolution that says so itself.
    """

    def __init__(
        self, *steps: Any, join: Callable[[mx.array, mx.array], mx.array] = operator.add, widest: float = 1
    ) -> None:
        self.steps, self.join, self.widest = flattened(steps), join, widest

    def __call__(self, x: mx.array) -> mx.array:
        return self.join(x, follow(self.steps, x))


def follow(steps: Sequence[Any], x: mx.array) -> mx.array:
    """All steps, on the whole map."""
    for step in steps:
        x = step(x)
    return x


def flattened(steps: Sequence[Any]) -> list[Any]:
    """The steps with those of every chain in its place."""
    return [s for step in steps for s in (flattened(step.steps()) if isinstance(step, Chain) else [step])]


def sees_all(step: Any) -> bool:
    """Whether a step needs the whole map."""
    return isinstance(step, WholeMap) or (isinstance(step, Residual) and any(map(sees_all, step.steps)))


def rows_ratio(step: Any) -> Fraction:
    """Rows of the input of a step / rows of its result."""
    ratio = Fraction(1)
    if isinstance(step, Windowed):
        window = step.window()
        return Fraction(window.stride, window.scale)
    for inner in step.steps if isinstance(step, Residual) else ():
        ratio *= rows_ratio(inner)
    return ratio


def widest(step: Any) -> float:
    """Elements of the largest map that a step computes / elements of its input, 1 at least."""
    if isinstance(step, Windowed):
        return max(1, step.window().growth)
    return max([step.widest, *map(widest, step.steps)]) if isinstance(step, Residual) else 1
