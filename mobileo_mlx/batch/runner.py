"""A run: which tasks an engine gets, and what becomes of its outcomes.

Nothing is done twice, and nothing lost: a chunk is claimed before it is worked on; what is done is read off the folder
after that; and a claim is given back when each of its lines has its result, or has been given up.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ..errors import ImageError, MobileOError
from ..files import kind_of
from .claims import Claim, Claims
from .engine import Done, Engine, Failed, Started
from .folder import Folder, Shard
from .jobs import CHUNK, BadLine, Jobs
from .perform import write_picture
from .results import write_results
from .tasks import Task, shard_of

ATTEMPTS = 3  # after which a line is given up

# If the first so many attempts of a run fail with one and the same sentence, no line is to blame for it; nor if so many
# in a row lack their image, which was there when the lines were checked.
_SAME = 10
_DIED = (
    f"the process that worked on it has ended {ATTEMPTS} times: it was killed, or crashed, perhaps for want of memory"
)


class BrokenRun(MobileOError):
    """Whatever is tried fails in the same way, and no line is to blame."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        total: tasks in the file.
        done: that have their results, those of earlier runs and other processes among them.
        failed: that were given up, likewise.
        computed: that were finished or given up by this run.
    """

    total: int
    done: int
    failed: int
    computed: int

    @property
    def left(self) -> int:
        """Tasks that are not done, or not known to be done yet: what is there is looked at as the run comes to it."""
        return self.total - self.done - self.failed


@dataclass(frozen=True)
class GivenUp:
    """A line that has failed for good.

    Attributes:
        line: its number.
        error: why, the last time.
    """

    line: int
    error: str


@dataclass
class _Chunk:
    claim: Claim
    tasks: dict[int, Task]  # that are not finished
    errors: dict[int, list[str]] = field(default_factory=dict)


class Run:
    """The tasks of a jobs file on their way through an engine. It is the engine's source.

    Args:
        jobs: the file, checked.
        folder: the output folder.
        retry_failed: whether lines that were given up are tried again.
    """

    def __init__(self, jobs: Jobs, folder: Folder, *, retry_failed: bool = False) -> None:
        self._jobs, self._folder = jobs, folder
        self._claims = Claims(folder.path)
        if retry_failed:
            folder.forget_failures()
            self._claims.forget()
        self._done = self._failed = self._computed = 0
        self._new: deque[GivenUp] = deque()
        self._again: deque[Task] = deque()
        self._open: dict[int, _Chunk] = {}
        # Processes that can't see each other's claims rarely meet where each begins at another place.
        begin = 0 if self._claims.locks else random.randrange(jobs.chunks)
        self._order = chain(range(begin, jobs.chunks), range(begin))
        self._busy: deque[int] = deque()  # chunks that other processes work on
        self._shard: tuple[str, Shard] = ("", Shard())  # the last one that was looked at
        self._first_errors: list[str] | None = []  # until something succeeds
        self._without_image = 0  # attempts in a row

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self._jobs.index.tasks, self._done, self._failed, self._computed)

    @property
    def locks(self) -> bool:
        """Whether other runs in the folder see what this one works on."""
        return self._claims.locks

    def events(self, engine: Engine) -> Iterator[Progress | GivenUp]:
        """Does all tasks. What an engine computes at the same time may be lost when this generator is closed.

        Yields:
            progress after each outcome, and at last; and lines that were given up.

        Raises:
            OutputError: the disk is full, the folder is gone.
            MobileOError: whatever else no line is to blame for.
        """
        outcomes = engine.outcomes(self)
        try:
            for outcome in outcomes:
                self._take_in(outcome)
                yield from self._news()
                if not isinstance(outcome, Started):
                    yield self.progress
            yield from self._news()
            yield self.progress
            if self.progress.left == 0:
                write_results(self._jobs, self._folder)
        finally:
            if hasattr(outcomes, "close"):
                outcomes.close()
            for chunk in self._open.values():
                chunk.claim.release(finished=False)
            self._open.clear()
            self._folder.close()

    def take(self) -> list[Task] | None:
        """See `engine.Source`."""
        if self._again:
            return [self._again.popleft()]
        for number in self._order:
            if tasks := self._claim(number):
                return tasks
        for _ in range(len(self._busy)):
            if tasks := self._claim(self._busy.popleft()):
                return tasks
        return [] if self._open or self._busy else None

    def _claim(self, number: int) -> list[Task]:
        """The tasks of a chunk that are to be done, which is claimed; none if there are none, or others do them."""
        found = list(self._jobs.chunk(number))
        if not found:
            return []
        name = shard_of(number * CHUNK + 1)
        if self._shard[0] != name:
            self._shard = (name, self._folder.shard(name))
        self._folder.read_failures()
        if not self._undone(found, self._shard[1]):
            self._count(found)
            return []
        claim = self._claims.take(number)
        if claim is None:
            self._busy.append(number)
            return []
        self._folder.read_failures()  # what others have done until now
        self._folder.shard(name, self._shard[1])
        tasks = self._undone(found, self._shard[1])
        chunk = self._open[number] = _Chunk(claim, {task.line: task for task in tasks if isinstance(task, Task)})
        left = {one.line for one in tasks}
        self._count([one for one in found if one.line not in left])
        for one in tasks:
            if isinstance(one, BadLine):
                self._give_up(chunk, one.line, one.id, [one.problem])
            elif claim.deaths.get(one.line, 0) >= ATTEMPTS:
                self._give_up(chunk, one.line, one.id, [_DIED] * ATTEMPTS)
        self._close_if_finished(number)
        return list(chunk.tasks.values())

    def _undone(self, found: list[Task | BadLine], shard: Shard) -> list[Task | BadLine]:
        left: list[Task | BadLine] = []
        for one in found:
            if one.line in self._folder.failed:
                continue
            try:
                if isinstance(one, BadLine) or not self._folder.is_done(one, shard):
                    left.append(one)
            except FileExistsError as error:
                left.append(BadLine(one.line, str(error), one.id))
        return left

    def _count(self, found: list[Task | BadLine]) -> None:
        failed = sum(one.line in self._folder.failed for one in found)
        self._failed += failed
        self._done += len(found) - failed

    def _take_in(self, outcome: Started | Done | Failed) -> None:
        number = (outcome.line - 1) // CHUNK
        chunk = self._open.get(number)
        task = None if chunk is None else chunk.tasks.get(outcome.line)
        if chunk is None or task is None:  # an engine may compute a task twice
            return
        if isinstance(outcome, Started):
            chunk.claim.started(outcome.line)
        elif isinstance(outcome, Done):
            self._first_errors = None
            self._without_image = 0
            if outcome.data is not None:
                write_picture(self._folder.path, task, outcome.data)
            if outcome.answer is not None:
                self._folder.add_answer(task, outcome.answer)
            del chunk.tasks[outcome.line]
            self._done += 1
            self._computed += 1
        else:
            if not outcome.died:
                self._look_for_cause(task, outcome.error)
            errors = chunk.errors.setdefault(outcome.line, [])
            errors.append(outcome.error)
            if len(errors) + chunk.claim.deaths.get(outcome.line, 0) < ATTEMPTS:
                self._again.append(task)
            else:
                self._give_up(chunk, outcome.line, task.id, errors)
                self._computed += 1
        self._close_if_finished(number)

    def _look_for_cause(self, task: Task, error: str) -> None:
        """Stops a run in which nothing has succeeded and all has failed in the same way, or whose images are gone."""
        missing = [image for image in task.images if kind_of(Path(image), error=ImageError) == ""]
        self._without_image = self._without_image + 1 if missing else 0
        if self._without_image == _SAME:
            raise BrokenRun(
                f"'{missing[0]}' and other images were there when the run began, and are not any more; see whether "
                "their disk is still connected, and start again."
            )
        if self._first_errors is None:
            return
        self._first_errors.append(error)
        # Many lines may have the same broken image.
        if len(set(self._first_errors)) > 1 or any(Path(image).name in error for image in task.images):
            self._first_errors = None
        elif len(self._first_errors) == _SAME:
            raise BrokenRun(f"all of the first {_SAME} attempts failed: {error}")

    def _give_up(self, chunk: _Chunk, line: int, name: str, errors: list[str]) -> None:
        self._folder.add_failure(line, name, errors)
        self._new.append(GivenUp(line, errors[-1]))
        self._failed += 1
        chunk.tasks.pop(line, None)

    def _close_if_finished(self, number: int) -> None:
        if not self._open[number].tasks:
            self._folder.flush()
            self._open.pop(number).claim.release(finished=True)

    def _news(self) -> Iterator[GivenUp]:
        while self._new:
            yield self._new.popleft()
