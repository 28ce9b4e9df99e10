"""Events of jobs, and which jobs are remembered."""

import asyncio

from mobileo_mlx.serving.jobs import JobStore

from .conftest import Steps


def numbers(events):
    return [event.number for event in events]


def test_reader_who_comes_back_gets_the_rest(loop):
    job = loop.job(Steps())
    job.publish("started")
    job.publish("text", {"delta": "a "})
    job.publish("text", {"delta": "star"})
    job.publish("completed", {})
    events = loop.events(job)
    assert [event.kind for event in events] == ["status", "text", "text", "completed"]
    assert numbers(loop.events(job, after=2)) == [3, 4]
    assert loop.events(job, after=4) == []
    assert job.text == "a star"
    assert events[-1].data["text"] == "a star"


def test_only_the_newest_progress_is_kept(loop):
    job = loop.job(Steps())
    for step in range(5):
        job.publish("progress", {"step": step})
    job.publish("completed", {})
    assert [event.data["step"] for event in loop.events(job) if event.kind == "progress"] == [4]


def test_previews_go_when_the_job_has_ended(loop):
    job = loop.job(Steps())
    job.publish("preview", {"data": b"..."})
    job.publish("completed", {})
    assert "preview" not in [event.kind for event in loop.events(job)]


def test_nothing_happens_after_the_end(loop):
    job = loop.job(Steps())
    job.publish("cancelled")
    job.publish("text", {"delta": "late"})
    assert [event.kind for event in loop.events(job)] == ["cancelled"]
    assert job.text == ""


def test_two_readers_get_the_same_while_it_runs(loop):
    job = loop.job(Steps())

    async def read_both():
        async def read():
            return [event.number async for event in job.events()]

        readers = [asyncio.ensure_future(read()) for _ in range(2)]
        await asyncio.sleep(0)
        for delta in "abc":
            job.publish("text", {"delta": delta})
            await asyncio.sleep(0)
        job.publish("completed", {})
        return await asyncio.gather(*readers)

    first, second = loop.run(read_both())
    assert first == second == [1, 2, 3, 4]


def test_store_keeps_the_last_kept_ones(loop):
    store = JobStore(limit=2)
    jobs = [loop.job(Steps(), kept=kept) for kept in (True, False, True, True)]
    for job in jobs:
        store.add(job)
    running = loop.job(Steps())
    store.add(running)
    for job in jobs:
        job.publish("completed", {})
        loop.events(job)
    assert store.newest(kept=False) == [running, jobs[3], jobs[2]]
    assert store.get(jobs[0].id) is None
