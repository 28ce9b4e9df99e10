"""What becomes of an engine's outcomes: scripted ones, without any model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobileo_mlx.batch import claims
from mobileo_mlx.batch.engine import Done, Failed, Outcome, Source, Started
from mobileo_mlx.batch.folder import Folder
from mobileo_mlx.batch.jobs import CHUNK, keep_index, open_jobs
from mobileo_mlx.batch.runner import ATTEMPTS, BrokenRun, GivenUp, Progress, Run
from mobileo_mlx.batch.tasks import Common, Task

from .conftest import records

Act = Callable[[Task, int], Outcome]  # of a task, and how often it was tried


def done(task: Task, attempt: int) -> Outcome:
    return Done(task.line, 0.1, answer={"text": f"of {task.id}", "finish_reason": "stop"})


class Scripted:
    """An engine that does what a function says, several chunks at once."""

    def __init__(self, act: Act = done, *, limit: int = 1) -> None:
        self.act, self.limit = act, limit
        self.tried: Counter[int] = Counter()
        self.chunks: list[list[int]] = []
        self.closed = False

    def identity(self) -> dict[str, Any]:
        return {}

    def outcomes(self, source: Source) -> Iterator[Outcome]:
        held: list[Task] = []
        ended = False
        try:
            while held or not ended:
                while not ended and len(held) < self.limit and (chunk := source.take()) != []:
                    ended = chunk is None
                    held += chunk or []
                    self.chunks.append([task.line for task in chunk or ()])
                if held:
                    task = held.pop()
                    self.tried[task.line] += 1
                    yield self.act(task, self.tried[task.line])
        finally:
            self.closed = True


class Runs:
    """Runs in one folder."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.out.mkdir()
        (folder / "a.png").touch()
        self.path = folder / "jobs.jsonl"
        lines = [
            {"id": f"n{i}", "task": "ask", "image": "a.png", "question": f"what {i}?"} for i in range(1, count + 1)
        ]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(self, **options: Any) -> Run:
        jobs, known = open_jobs(self.path, self.out, Common(self.folder))
        if not known:
            keep_index(jobs, self.out, good=True)
        return Run(jobs, Folder(self.out), **options)

    def events(self, engine: Scripted, **options: Any) -> list[Progress | GivenUp]:
        return list(self.make(**options).events(engine))

    def answered(self) -> list[int]:
        return sorted(r["line"] for path in self.out.glob("*/answers-*.jsonl") for r in records(path))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path, 3 * CHUNK + 7)


TOTAL = 3 * CHUNK + 7


@pytest.mark.parametrize("limit", [1, CHUNK + 1, 10 * CHUNK])
def test_each_task_once(runs: Runs, limit: int) -> None:
    engine = Scripted(limit=limit)
    events = runs.events(engine)
    assert set(engine.tried.values()) == {1}
    assert events[-1] == Progress(TOTAL, TOTAL, 0, TOTAL)
    assert events[-1].left == 0
    assert [event.computed for event in events if isinstance(event, Progress)] == [*range(1, TOTAL + 1), TOTAL]
    assert runs.answered() == list(range(1, TOTAL + 1))
    assert all(len(chunk) <= CHUNK for chunk in engine.chunks)
    assert [record["text"] for record in records(runs.out / "results.jsonl")] == [
        f"of n{i}" for i in range(1, TOTAL + 1)
    ]
    assert list((runs.out / claims.FOLDER).iterdir()) == []
    again = Scripted()
    assert runs.events(again) == [Progress(TOTAL, TOTAL, 0, 0)]
    assert not again.tried


def test_a_line_is_given_up_after_three_failures_and_tried_again_when_asked_for(runs: Runs) -> None:
    def act(task: Task, attempt: int) -> Outcome:
        return Failed(task.line, f"failure {attempt} of {task.line}") if task.line in (5, 30) else done(task, attempt)

    engine = Scripted(act)
    events = runs.events(engine)
    assert engine.tried == {line: ATTEMPTS if line in (5, 30) else 1 for line in range(1, TOTAL + 1)}
    assert [event for event in events if isinstance(event, GivenUp)] == [
        GivenUp(5, "failure 3 of 5"),
        GivenUp(30, "failure 3 of 30"),
    ]
    assert events[-1] == Progress(TOTAL, TOTAL - 2, 2, TOTAL)
    first, second = records(runs.out / "failed.jsonl")
    assert (first["id"], first["errors"]) == ("n5", [f"failure {i} of 5" for i in (1, 2, 3)])
    assert second["line"] == 30
    assert records(runs.out / "results.jsonl")[4] == {"id": "n5", "line": 5, "error": "failure 3 of 5"}

    quiet = Scripted()
    assert runs.events(quiet) == [Progress(TOTAL, TOTAL - 2, 2, 0)]
    assert not quiet.tried
    again = Scripted()
    assert runs.events(again, retry_failed=True)[-1] == Progress(TOTAL, TOTAL, 0, 2)
    assert again.tried == {5: 1, 30: 1}
    assert not (runs.out / "failed.jsonl").exists()


def test_a_failure_may_pass(runs: Runs) -> None:
    def act(task: Task, attempt: int) -> Outcome:
        return Failed(task.line, f"of {task.line}") if attempt < ATTEMPTS and task.line % 2 else done(task, attempt)

    engine = Scripted(act, limit=50)
    assert runs.events(engine)[-1] == Progress(TOTAL, TOTAL, 0, TOTAL)
    assert not (runs.out / "failed.jsonl").exists()


def test_only_the_one_at_fault_of_a_chunk_is_given_up(runs: Runs) -> None:
    """A worker that holds a chunk dies with line 7, whoever is in the chunk."""

    class Dying(Scripted):
        def outcomes(self, source: Source) -> Iterator[Outcome]:
            while (chunk := source.take()) is not None:
                self.chunks.append([task.line for task in chunk])
                died = any(task.line == 7 for task in chunk)
                for task in chunk:
                    yield Failed(task.line, "the worker died", died=True) if died else done(task, 1)

    engine = Dying()
    assert runs.events(engine)[-1] == Progress(TOTAL, TOTAL - 1, 1, TOTAL)
    assert [chunk for chunk in engine.chunks if 7 in chunk] == [list(range(1, CHUNK + 1)), [7], [7]]
    assert [record["line"] for record in records(runs.out / "failed.jsonl")] == [7]


def test_a_run_in_which_all_fails_in_the_same_way_ends(runs: Runs) -> None:
    engine = Scripted(lambda task, attempt: Failed(task.line, "the model is broken"))
    with pytest.raises(BrokenRun, match="all of the first 10 attempts failed: the model is broken"):
        runs.events(engine)
    assert engine.closed
    assert not (runs.out / "failed.jsonl").exists()
    assert runs.events(Scripted())[-1] == Progress(TOTAL, TOTAL, 0, TOTAL)


def test_an_image_that_many_lines_share_is_their_own_fault(runs: Runs) -> None:
    engine = Scripted(lambda task, attempt: Failed(task.line, "'a.png' is damaged."))
    assert runs.events(engine)[-1] == Progress(TOTAL, 0, TOTAL, TOTAL)


def test_images_that_are_gone_end_it_however_late(runs: Runs) -> None:
    """As those on a disk that was unplugged; with it the run goes on, and has given up few lines or none."""
    image = runs.folder / "a.png"

    def act(task: Task, attempt: int) -> Outcome:
        if task.line > CHUNK:
            image.unlink(missing_ok=True)
        return done(task, attempt) if image.exists() else Failed(task.line, "'a.png' does not exist.")

    with pytest.raises(BrokenRun, match=r"a.png' and other images were there when the run began"):
        runs.events(Scripted(act))
    image.touch()
    assert runs.events(Scripted(), retry_failed=True)[-1] == Progress(TOTAL, TOTAL, 0, TOTAL - CHUNK)


def test_later_failures_of_one_kind_do_not_end_it(runs: Runs) -> None:
    def act(task: Task, attempt: int) -> Outcome:
        return done(task, attempt) if task.line <= CHUNK else Failed(task.line, "the same")

    assert runs.events(Scripted(act))[-1].failed == TOTAL - CHUNK


def test_outcomes_that_nobody_waits_for_are_passed_over(runs: Runs) -> None:
    class Repeating(Scripted):
        def outcomes(self, source: Source) -> Iterator[Outcome]:
            for outcome in super().outcomes(source):
                yield from (outcome, outcome, Done(10**6), Started(10**6))

    assert runs.events(Repeating())[-1] == Progress(TOTAL, TOTAL, 0, TOTAL)
    assert runs.answered() == list(range(1, TOTAL + 1))


def test_a_run_that_is_stopped_goes_on(runs: Runs) -> None:
    engine = Scripted()
    events = runs.make().events(engine)
    for _ in range(25):
        next(events)
    events.close()
    assert engine.closed
    assert not (runs.out / "results.jsonl").exists()
    rest = Scripted()
    assert runs.events(rest)[-1].left == 0
    assert set(rest.tried) == set(range(1, TOTAL + 1)) - set(engine.tried)
    assert sum(engine.tried.values()) == 25
    assert runs.answered() == list(range(1, TOTAL + 1))


def test_two_runs_share_the_chunks_and_wait_for_each_other(runs: Runs) -> None:
    """The second one takes what the first one has not claimed, and what that leaves when it ends."""
    first, second = Scripted(), Scripted()
    events = runs.make().events(first)
    next(events)  # the first chunk is claimed now
    other = runs.make()
    source = other.events(second)
    for _ in range(TOTAL - CHUNK):
        next(source)
    assert set(second.tried) == set(range(CHUNK + 1, TOTAL + 1))
    assert other.take() == []  # nothing now, but the first one may die
    next(events)
    events.close()
    rest = list(source)
    assert rest[-1] == Progress(TOTAL, TOTAL, 0, TOTAL - 2)
    assert set(first.tried) & set(second.tried) == set()
    assert runs.answered() == list(range(1, TOTAL + 1))


def test_without_locks_work_may_be_done_twice_and_no_result_is_torn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("claims", "folder"):
        monkeypatch.setattr(f"mobileo_mlx.batch.{module}.lock", lambda *arguments, **options: None)
    monkeypatch.setattr("mobileo_mlx.batch.runner.random.randrange", lambda count: 0)  # they meet in each chunk
    first, second = Scripted(), Scripted()
    both = [runs.make().events(first), runs.make().events(second)]
    while both:
        for events in list(both):
            if next(events, None) is None:
                both.remove(events)
    assert set(first.tried) | set(second.tried) == set(range(1, TOTAL + 1))
    assert set(runs.answered()) == set(range(1, TOTAL + 1))
    assert [record["line"] for record in records(runs.out / "results.jsonl")] == list(range(1, TOTAL + 1))


def test_without_locks_runs_begin_at_different_places(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobileo_mlx.batch.claims.lock", lambda *arguments, **options: None)
    monkeypatch.setattr("mobileo_mlx.batch.runner.random.randrange", lambda count: count - 1)
    engine = Scripted()
    assert runs.events(engine)[-1].left == 0
    assert [chunk[0] for chunk in engine.chunks if chunk] == [3 * CHUNK + 1, 1, CHUNK + 1, 2 * CHUNK + 1]


def test_an_error_of_the_engine_ends_the_run_and_loses_nothing(runs: Runs) -> None:
    from mobileo_mlx.errors import CheckpointError

    def act(task: Task, attempt: int) -> Outcome:
        if task.line == 15:
            raise CheckpointError("gone")
        return done(task, attempt)

    with pytest.raises(CheckpointError):
        runs.events(Scripted(act))
    kept = runs.answered()
    assert len(kept) == CHUNK - 15
    rest = Scripted()
    runs.events(rest)
    assert set(rest.tried) == set(range(1, TOTAL + 1)) - set(kept)
