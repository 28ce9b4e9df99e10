"""Limits on MLX's memory: recorded instead of set, as neither exists without a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import pytest

from mobileo_mlx.ops import backend, memory
from mobileo_mlx.pipeline import MobileO


class Recorder:
    """MLX's limits and what was done with them, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limits = {"cache": 10 * memory.STAGED_CACHE, "wired": 7}
        self.calls: list[tuple[str, int]] = []
        monkeypatch.setattr(mx, "set_cache_limit", lambda limit: self._set("cache", limit))
        monkeypatch.setattr(mx, "set_wired_limit", lambda limit: self._set("wired", limit))
        monkeypatch.setattr(mx, "synchronize", lambda: self.calls.append(("synchronize", 0)))
        monkeypatch.setattr(mx, "clear_cache", lambda: self.calls.append(("clear", 0)))
        monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": 1000})

    def _set(self, name: str, limit: int) -> int:
        before, self.limits[name] = self.limits[name], limit
        self.calls.append((name, limit))
        return before


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "backend", lambda: "metal")


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.WIRED_VARIABLE, "1")
    monkeypatch.setattr(backend, "backend", lambda: "metal")


@pytest.mark.usefixtures("metal")
def test_the_cache_is_small_while_a_staged_task_computes(recorder: Recorder) -> None:
    with memory.limits(staged=True):
        assert recorder.limits == {"cache": memory.STAGED_CACHE, "wired": 7}
    assert recorder.limits == {"cache": 10 * memory.STAGED_CACHE, "wired": 7}


@pytest.mark.usefixtures("metal")
def test_a_smaller_limit_stays(recorder: Recorder) -> None:
    recorder.limits["cache"] = 5
    with memory.limits(staged=True):
        assert recorder.limits["cache"] == 5
    assert recorder.limits["cache"] == 5


@pytest.mark.usefixtures("wired")
@pytest.mark.parametrize("name", ["cache", "wired"])
def test_the_last_of_several_tasks_restores_a_limit(recorder: Recorder, name: str) -> None:
    """Whichever ends first, and though one of them fails."""
    before = dict(recorder.limits)
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        stacks = [ExitStack() for _ in order]
        for stack in stacks:
            stack.enter_context(memory.limits(staged=name == "cache"))
            assert recorder.limits[name] != before[name]
        for count, i in enumerate(order, 1):
            stacks[i].__exit__(*(ValueError, ValueError(), None) if count == 2 else (None,) * 3)
            assert (recorder.limits[name] == before[name]) == (count == len(order))
    assert recorder.limits == before


@pytest.mark.usefixtures("wired")
def test_networks_that_are_kept_are_wired_where_it_is_asked_for(recorder: Recorder) -> None:
    with memory.limits(staged=False):
        assert recorder.calls == [("wired", 1000)]
    assert recorder.calls == [("wired", 1000), ("synchronize", 0), ("wired", 7)]


def test_a_cpu_has_its_own_limits(recorder: Recorder) -> None:
    with memory.limits(staged=True), memory.limits(staged=False):
        assert not recorder.calls


@pytest.mark.usefixtures("wired")
@pytest.mark.parametrize("why", ["unasked", "cpu", "cuda", "staged"])
def test_nothing_is_wired_otherwise(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "unasked":
        monkeypatch.delenv(memory.WIRED_VARIABLE)
    elif why != "staged":
        monkeypatch.setattr(backend, "backend", lambda: why)
    with memory.limits(staged=why == "staged"):
        assert recorder.limits["wired"] == 7
    assert "wired" not in dict(recorder.calls)


@pytest.mark.usefixtures("metal")
@pytest.mark.parametrize("kept", [True, False])
def test_tasks_hold_the_limits_until_they_end(tiny_model: Path, recorder: Recorder, kept: bool) -> None:
    """Two streams in turn, of which one is closed; and a whole call between their steps."""
    model, free = MobileO.load(tiny_model, keep_loaded=kept), recorder.limits["cache"]
    wanted = free if kept else memory.STAGED_CACHE
    streams = [model.stream_generate("a cat", steps=2), model.chat().stream("hello", max_tokens=5)]
    assert recorder.limits["cache"] == free
    for stream in streams:
        next(stream)
        assert recorder.limits["cache"] == wanted
    model.generate("a dog", steps=1)
    streams.pop().close()  # type: ignore[attr-defined]
    assert recorder.limits["cache"] == wanted
    assert len(list(streams.pop())) == 2
    assert recorder.limits["cache"] == free


def test_the_cache_is_emptied_when_networks_come_or_go(tiny_model: Path, recorder: Recorder) -> None:
    """And not in a second task on the same networks, which needs buffers of the same sizes."""

    def clears(model: MobileO) -> int:
        recorder.calls.clear()
        model.generate("a cat", steps=1, seed=1)
        return recorder.calls.count(("clear", 0))

    kept, staged = MobileO.load(tiny_model), MobileO.load(tiny_model, keep_loaded=False)
    assert clears(kept) > 0
    assert clears(kept) <= 1  # what the last phase loaded
    assert [clears(kept), clears(kept)] == [0, 0]
    assert [clears(staged), clears(staged)] == [3, 3]


def test_results_say_what_the_cache_holds(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 12345)
    model = MobileO.load(tiny_model)
    assert model.generate("a cat", steps=1).cache_memory == 12345
    assert model.chat().send("hello", max_tokens=2).cache_memory == 12345
