"""Tasks in several threads: the same results as in one, one task at a time, and none waits for a suspended one."""

from __future__ import annotations

import _thread
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from PIL import Image
from thread_situations import SITUATIONS, in_thread

import mobileo_mlx.threads
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.threads import in_turns

SCRIPT = Path(__file__).with_name("thread_situations.py")


@pytest.mark.parametrize(("kept", "forms"), [("kept", "cpu"), ("staged", "metal")])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_threads_change_no_result(tiny_model: Path, situation: str, kept: str, forms: str) -> None:
    """In a process of its own: what fails here ends the process as often as it raises."""
    command = [sys.executable, str(SCRIPT), situation, str(tiny_model), kept, forms]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system lists no threads")
def test_the_process_waits_for_threads_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those that Python no longer knows and the system does, and for none that go on."""
    ids: list[int] = []

    def end() -> None:
        ids.append(threading.get_native_id())
        time.sleep(0.05)

    _thread.start_new_thread(end, ())  # never listed by `threading`
    goes_on, stop = threading.Event(), threading.Event()
    daemon = threading.Thread(target=lambda: goes_on.set() or stop.wait())
    daemon.start()
    goes_on.wait()
    while not ids:
        time.sleep(0.001)
    monkeypatch.setattr(mobileo_mlx.threads, "_seen", {ids[0], daemon.native_id})
    mobileo_mlx.threads._await_ended_threads()
    assert not Path(f"/proc/self/task/{ids[0]}").exists()
    assert daemon.is_alive()
    stop.set()
    daemon.join()


def free(lock: threading.RLock) -> bool:
    """Whether another thread could take a lock."""

    def take() -> bool:
        if taken := lock.acquire(blocking=False):
            lock.release()
        return taken

    return in_thread(take)


def test_a_step_holds_the_lock_and_a_suspended_task_does_not() -> None:
    lock, seen = threading.RLock(), []

    def task() -> Generator[int, None, None]:
        for i in range(3):
            seen.append(free(lock))
            yield i

    for i in in_turns(lock, task(), nullcontext()):
        seen.append(free(lock))
        assert free(lock), i
    assert seen == [False, True] * 3
    assert free(lock)


@pytest.mark.parametrize("way", ["exhausted", "closed", "dropped", "failed"])
def test_the_end_of_a_task(way: str) -> None:
    """However it ends, the task is closed, its limits are left, and the lock is free; closing needs no lock."""
    lock, events = threading.RLock(), []

    @contextmanager
    def limits() -> Iterator[None]:
        events.append("limits")
        try:
            yield
        finally:
            events.append("left")

    def task() -> Generator[int, None, None]:
        try:
            yield 1
            if way == "failed":
                raise ValueError(way)
        finally:
            events.append("closed")

    stream = in_turns(lock, task(), limits())
    assert next(stream) == 1
    if way == "exhausted":
        assert list(stream) == []
    elif way == "failed":
        with pytest.raises(ValueError, match="failed"):
            next(stream)
    else:
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with lock:
                held.set()
                go_on.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        if way == "closed":
            stream.close()
        else:
            del stream
            gc.collect()
        go_on.set()
        holder.join()
    assert sorted(events) == ["closed", "left", "limits"]
    assert free(lock)


def test_a_task_that_was_never_begun_leaves_nothing() -> None:
    entered = []

    @contextmanager
    def limits() -> Iterator[None]:
        entered.append(1)
        yield

    stream = in_turns(threading.RLock(), iter_once(), limits())
    stream.close()
    assert not entered


def iter_once() -> Generator[int, None, None]:
    yield 1


@pytest.mark.parametrize(
    "task",
    [
        lambda model: model.generate("a cat", steps=2),
        lambda model: model.edit(Image.new("RGB", (8, 8)), "blue", steps=2),
        lambda model: model.ask(Image.new("RGB", (8, 8)), "what?", max_tokens=3),
        lambda model: model.chat().send("hello", images=Image.new("RGB", (8, 8)), max_tokens=3),
    ],
    ids=["generate", "edit", "ask", "send"],
)
def test_whole_calls_are_not_interrupted(tiny_model: Path, task: Callable[[MobileO], object]) -> None:
    """While one runs, others wait: between its phases, and between the items of its stream, too."""
    model = MobileO.load(tiny_model)
    taken: list[bool] = []

    def enter(phase: str) -> None:
        taken.append(free(model.parts.lock))

    model.parts.on_phase = enter
    turns = model.parts.in_turns

    def watched(inner: Generator) -> Iterator:
        for item in turns(inner):
            taken.append(free(model.parts.lock))
            yield item

    model.parts.in_turns = watched  # type: ignore[method-assign, assignment]
    task(model)
    assert len(taken) > 4
    assert not any(taken)


def test_a_network_is_loaded_and_evaluated_under_the_lock(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private arrays, too."""
    model = MobileO.load(tiny_model)
    load = mobileo_mlx.parts.load_component

    def slow(*args: object, **options: object) -> object:
        import mlx.core as mx

        assert not free(model.parts.lock)
        network = load(*args, **options)  # type: ignore[arg-type]
        network._table = mx.ones((3,)) + 1
        return network

    monkeypatch.setattr(mobileo_mlx.parts, "load_component", slow)
    projector = model.parts.mm_projector
    assert in_thread(lambda: (projector._table + 1).tolist()) == [3, 3, 3]


def test_a_new_turn_waits_for_a_token_of_the_one_before(tiny_model: Path) -> None:
    """Closing a turn that another thread is computing would fail."""
    model = MobileO.load(tiny_model)
    chat = model.chat()
    first = chat.stream("hello", max_tokens=20)
    next(first)
    held, go_on, order = threading.Event(), threading.Event(), []

    def compute() -> None:
        with model.parts.lock:
            held.set()
            go_on.wait()
            order.append(next(first).token)

    def turn() -> None:
        chat.stream("and you?", max_tokens=2)
        order.append(-1)

    threads = [threading.Thread(target=compute), threading.Thread(target=turn)]
    threads[0].start()
    held.wait()
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert order[0] >= 0
    assert order[1] == -1
    assert list(first) == []
    assert len(chat.messages) == 2


@pytest.mark.parametrize("first", ["the iterator", "the chat"])
def test_a_turn_that_two_threads_close_is_closed_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """One begins, and the other comes while the conversation is being rolled back."""
    chat = MobileO.load(tiny_model).chat()
    tokens = chat.stream("hello", max_tokens=5)
    next(tokens)
    begun, go_on, roll_back = threading.Event(), threading.Event(), chat._roll_back

    def slowly(offset: int) -> None:
        begun.set()
        go_on.wait(10)
        roll_back(offset)

    monkeypatch.setattr(chat, "_roll_back", slowly)
    failed: list[Exception] = []

    def closing(close: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                close()
            except Exception as error:
                failed.append(error)

        return run

    ways = [tokens.close, chat._close_turn]
    threads = [threading.Thread(target=closing(way)) for way in (ways if first == "the iterator" else ways[::-1])]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threading.Timer(0.05, go_on.set).start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [message.role for message in chat.messages] == ["user", "assistant"]
