"""The queue and the one thread behind it."""

import threading

import pytest

from mobileo_mlx.errors import CheckpointError, OptionError
from mobileo_mlx.serving.errors import ApiError
from mobileo_mlx.serving.worker import Worker

from .conftest import Steps


def submitted(loop, worker, *tasks, client="a"):
    jobs = [loop.job(task, client=client) for task in tasks]
    for job in jobs:
        worker.submit(job)
    return jobs


def test_job_runs_to_its_end(loop, worker):
    task = Steps(2)
    (job,) = submitted(loop, worker, task)
    kinds = [event.kind for event in loop.events(job)]
    assert kinds[-1] == "completed"
    assert job.status == "completed"
    assert job.outcome == {"timings": {"denoise": 1.0}}
    assert task.released


def test_error_of_the_request_is_400_and_the_next_job_runs(loop, worker):
    failing, fine = submitted(loop, worker, Steps(error=OptionError("no such size.")), Steps())
    assert [event.kind for event in loop.events(failing)][-1] == "failed"
    assert (failing.error.status, failing.error.message) == (400, "no such size.")
    loop.events(fine)
    assert fine.status == "completed"


def test_bug_is_500_and_tells_nothing(loop, worker, caplog):
    (job,) = submitted(loop, worker, Steps(error=KeyError("secret")))
    loop.events(job)
    assert job.error.status == 500
    assert "secret" not in job.error.message
    assert "secret" in caplog.text


def test_cancelled_while_it_runs_stops_at_the_next_step(loop, worker):
    task = Steps(50, held=True)
    (job,) = submitted(loop, worker, task)
    task.allow(2)
    for _ in range(3):
        task.reached.acquire()  # the third step has begun
    worker.cancel(job)
    task.allow(50)
    assert [event.kind for event in loop.events(job)][-1] == "cancelled"
    assert len(task.ran) == 3
    assert task.closed


def test_cancelled_while_it_waits_never_runs(loop, worker):
    running, waiting = Steps(1, held=True), Steps()
    first, second = submitted(loop, worker, running, waiting)
    running.reached.acquire()
    worker.cancel(second)
    assert [event.kind for event in loop.events(second)][-1] == "cancelled"
    running.allow()
    loop.events(first)
    assert waiting.ran == []
    assert waiting.released


def test_clients_take_turns(loop, worker):
    """One who asks for many pictures does not keep others waiting for all of them."""
    order = []

    class Named(Steps):
        def __init__(self, label, **options):
            super().__init__(1, **options)
            self.label = label

        def run(self, model, turn):
            order.append(f"{self.label}{turn}")
            return super().run(model, turn)

    blocker = Named("x", held=True)
    (first,) = submitted(loop, worker, blocker, client="x")
    blocker.reached.acquire()
    jobs = submitted(loop, worker, Named("many", turns=3), Named("later"), client="greedy")
    jobs += submitted(loop, worker, Named("one"), client="modest")
    assert [job.task.label for job in worker.waiting()] == ["many", "one", "later"]
    blocker.allow()
    for job in [first, *jobs]:
        loop.events(job)
    assert order == ["x0", "many0", "one0", "many1", "many2", "later0"]


def test_clients_with_ever_new_names_do_not_keep_others_from_their_turns(loop, worker):
    order, jobs = [], []

    class Named(Steps):
        def __init__(self, label, **options):
            super().__init__(1, **options)
            self.label = label

        def run(self, model, turn):
            order.append(self.label)
            if self.label != "old" and len(jobs) < 8:  # before it ends, the next one is there
                jobs.extend(submitted(loop, worker, Named(f"new{len(jobs)}"), client=f"new{len(jobs)}"))
            return super().run(model, turn)

    blocker = Named("old", held=True, turns=3)
    submitted(loop, worker, blocker, client="old")
    blocker.reached.acquire()
    jobs += submitted(loop, worker, Named("new0"), client="new0")
    blocker.allow(3)
    for job in jobs:
        loop.events(job)
    assert order[:5] == ["old", "new0", "old", "new1", "old"]


def test_full_queue_says_when_to_come_back(loop, worker):
    blocker = Steps(1, held=True)
    (first,) = submitted(loop, worker, blocker)
    blocker.reached.acquire()
    jobs = submitted(loop, worker, *(Steps() for _ in range(4)))
    with pytest.raises(ApiError) as refused:
        submitted(loop, worker, Steps())
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    blocker.allow()
    for job in [first, *jobs]:
        loop.events(job)
    assert all(job.status == "completed" for job in jobs)


def test_images_of_waiting_jobs_are_limited(loop, worker):
    blocker = Steps(1, held=True)
    (first,) = submitted(loop, worker, blocker)
    blocker.reached.acquire()
    submitted(loop, worker, Steps(nbytes=600))
    with pytest.raises(ApiError, match="wait already"):
        submitted(loop, worker, Steps(nbytes=600))
    blocker.allow()
    loop.events(first)


def test_stopping_ends_all_jobs(loop):
    worker = Worker(object, limit=4, max_bytes=1000)
    worker.start()
    running = Steps(50, held=True)
    jobs = submitted(loop, worker, running, Steps())
    running.reached.acquire()
    # Its steps go on once it is told to stop, and not before: it would be complete by then.
    going_on = threading.Thread(target=lambda: jobs[0].stop.wait(60) and running.allow(50))
    going_on.start()
    assert worker.stop(60)
    going_on.join()
    assert [loop.events(job)[-1].kind for job in jobs] == ["cancelled", "cancelled"]
    assert len(running.ran) == 1
    with pytest.raises(ApiError) as refused:
        submitted(loop, worker, Steps())
    assert refused.value.status == 503


def test_model_that_does_not_load_is_the_starter_s_error():
    def load():
        raise CheckpointError("no such model.")

    with pytest.raises(CheckpointError, match="no such model"):
        Worker(load, limit=4, max_bytes=1000).start()
