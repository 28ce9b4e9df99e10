"""The engine that computes in this process, one task after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import identity
from .engine import PAUSE, Outcome, Setup, Source, Started
from .perform import attempt

if TYPE_CHECKING:
    from ..pipeline import MobileO


class Local:
    """One loaded model, and the folder that it writes into.

    Args:
        model: with `keep_loaded`.
        setup: of the run.
    """

    def __init__(self, model: MobileO, setup: Setup) -> None:
        self.model, self.setup = model, setup

    def identity(self) -> dict[str, Any]:
        """See `engine.Engine`."""
        return identity.of(self.model)

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        """See `engine.Engine`."""
        while (chunk := source.take()) is not None:
            for task in chunk:
                yield Started(task.line)
                yield attempt(self.model, task, self.setup, write=True)
            if not chunk:
                time.sleep(PAUSE)
