"""What a run and the engine that computes its tasks say to each other.

An engine takes chunks of tasks from a source whenever it can take more, and yields what became of each task. It
knows nothing of files that say what is done, of claims, or of how often a task is tried: `runner.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .tasks import Task

PAUSE = 0.5  # seconds after which a source that had nothing is asked again


@dataclass(frozen=True)
class Setup:
    """What all tasks of a run have in common; small, and can be pickled.

    Attributes:
        folder: the output folder, from the root of the file system. Where an engine's workers see the same folder there
            they may write pictures themselves (`perform.attempt(..., write=True)`).
        loading: keyword arguments of `MobileO.load`.
        suffix: of pictures, such as ".png".
    """

    folder: Path
    loading: dict[str, Any] = field(default_factory=dict)
    suffix: str = ".png"


@dataclass(frozen=True)
class Started:
    """A task is being computed in this very process: if the process dies now, that counts as a failure of the task.

    Only for engines that compute in the process that runs them.
    """

    line: int


@dataclass(frozen=True)
class Done:
    """A task is finished.

    Attributes:
        line: of the task.
        seconds: that it took.
        data: the file of the picture, where nobody has written it yet; None where the engine did, or there is none.
        answer: of `ask` and `caption`, as JSON can hold it: "text" and "finish_reason".
    """

    line: int
    seconds: float = 0.0
    data: bytes | None = field(default=None, repr=False)
    answer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Failed:
    """A task has failed once; the source will give it again, alone, until it has failed `runner.ATTEMPTS` times.

    Attributes:
        line: of the task.
        error: why, in a sentence.
        died: whether that is only that a worker died, or a server went away, while it held the task.
    """

    line: int
    error: str
    died: bool = False


Outcome = Started | Done | Failed


class Source(Protocol):
    """Where an engine gets its tasks; used by one thread alone, the one that reads `Engine.outcomes`."""

    def take(self) -> list[Task] | None:
        """The next chunk, 1 to `jobs.CHUNK` tasks.

        Returns:
            the tasks; an empty list where there is nothing to do at the moment, but there may be later (outcomes that
            are not yielded yet may be failures, and another process may die): ask again after the next outcome, or
            after `PAUSE` seconds; None when all tasks are done, and the engine may end.
        """
        ...


class Engine(Protocol):
    """Computes tasks."""

    def identity(self) -> dict[str, Any]:
        """Which model computes, as `identity.of` gives it; the manifest keeps it, and a resumed run must have the same.

        Raises:
            MobileOError: there is no such model, or the workers have different ones.
        """
        ...

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        """Computes all tasks of a source, and yields at least one `Done` or `Failed` for each that was taken.

        A worker that dies makes a `Failed` of every task that it held: any one of them may have killed it. As each is
        given again alone, the others succeed.

        A generator: when it is closed (Ctrl-C, an error elsewhere) it stops its workers, and leaves nothing running.

        Raises:
            MobileOError: what no task is to blame for: the model is broken, no server answers. It ends the run.
        """
        ...
