"""When a run makes no sense to continue: its loss grows, and not by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_STEPS = 160  # over which the mean of the losses is taken; a run is judged from a quarter of them on
_FLOOR = 0.01  # a loss below is as good as none: how many times smaller it is says nothing


class RunningMean:
    """The running mean of some values, of which early ones are means of what there is.

    Args:
        decay: of the weight of older values, from one to the next.

    Attributes:
        value: the mean.
        weight: of all values so far; that of the newest is 1.
    """

    def __init__(self, decay: float = 0.95) -> None:
        self.value, self.weight, self._decay = 0.0, 0.0, decay

    def add(self, value: float) -> float:
        """The mean with one more value."""
        self.weight = self._decay * self.weight + 1
        self.value += (value - self.value) / self.weight
        return self.value


@dataclass
class DivergenceGuard:
    """Compares the running mean of a run's losses with the smallest that it was.

    What the loss of one sample is depends most of all on its noise level: once a picture is memorised it may be 1 at
    the lowest levels and 0.005 at all others; answers that are known and such that can't be differ as much. A mean
    over a few samples then is any of these by chance. So logarithms are averaged, in which a rare large loss counts no
    more than a rare small one, and over so many steps that chance does not come near the tolerance.

    Attributes:
        tolerance: how many times its smallest value the (geometric) mean may be.
        lowest: its smallest value so far; infinite until there were enough steps.
    """

    tolerance: float = 4.0
    lowest: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        self._mean = RunningMean(1 - 1 / _STEPS)
        self._steps = 0

    @property
    def value(self) -> float:
        """The geometric mean."""
        return math.exp(self._mean.value)

    def diverged(self, loss: float) -> bool:
        """Takes one more loss, which is finite, and says whether the mean is beyond the tolerance."""
        self._mean.add(math.log(max(loss, _FLOOR)))
        self._steps += 1
        if self._steps >= _STEPS // 4:
            self.lowest = min(self.lowest, self.value)
        return self.value > self.tolerance * self.lowest
