"""What happens in a run, as it is yielded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .loop import StepReport


@dataclass(frozen=True)
class Evaluated:
    """The loss on samples that are not trained on, and its parts."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class SamplesWritten:
    """The sample sheet was written, see `mobileo_mlx.training.sample_sheet`."""

    step: int
    path: Path


@dataclass(frozen=True)
class SamplesFailed:
    """There is no sample sheet of this step: a picture or an answer was not finite."""

    step: int
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something about the run that its user should know: a sentence without a full stop."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The adapter was written.

    Attributes:
        step: smaller than `steps` where the run was stopped.
        plot: the curves of the loss; None where matplotlib is not installed.
    """

    folder: Path
    step: int
    steps: int
    plot: Path | None


Event = StepReport | Evaluated | SamplesWritten | SamplesFailed | Notice | Finished
