"""Situations of several threads, each run in a process of its own by `test_threads.py`: a fault would end pytest.

    python thread_situations.py SITUATION MODEL kept|staged cpu|metal

Each compares with the results of a model that nothing else was done with, in one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mobileo_mlx import Answer, AnswerToken, GenerationResult, MobileO
from mobileo_mlx.latents import noise
from mobileo_mlx.ops import backend

PICTURE = Image.new("RGB", (64, 64), (200, 10, 10))
# Random choices too: their keys live as long as an answer. No guidance in the first steps.
SAMPLED: dict[str, Any] = {"max_tokens": 6, "temperature": 2.0, "seed": 5}
DRAWN: dict[str, Any] = {"steps": 3, "guidance_interval": (0, 0.9)}


@dataclass
class Model:
    """How models are loaded, one after the other."""

    path: str
    kept: bool

    def load(self) -> MobileO:
        return MobileO.load(self.path, keep_loaded=self.kept)


def in_thread(task: Callable[[], Any]) -> Any:
    """What a task gives in a thread that begins and ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task).result()


def seen(result: Any) -> Any:
    """What is compared of a result."""
    if isinstance(result, GenerationResult):
        return [np.array(image).tolist() for image in result.images]
    if isinstance(result, Answer | AnswerToken):
        return result.text
    return np.array(result.latents).tolist()


def streams(model: MobileO) -> list[Iterator[Any]]:
    """One of each kind, not begun yet."""
    return [
        model.stream_generate("a red star", seed=1, **DRAWN),
        model.stream_ask(PICTURE, "what color is it?", **SAMPLED),
        model.stream_edit(PICTURE, "make it blue", seed=2, strength=0.8, steps=6),
        model.chat().stream("hello", **SAMPLED),
    ]


def alone(model: Model) -> list[list[Any]]:
    return [[seen(item) for item in stream] for stream in streams(model.load())]


def same(found: Any, expected: Any) -> None:
    assert found == expected, "other results than in one thread"


def first_use(model: Model) -> None:
    """Four threads with eight tasks on a model that nobody has used."""
    jobs: list[Callable[[MobileO], Any]] = [
        lambda m: m.generate("a red star", seed=1, **DRAWN),
        lambda m: m.ask(PICTURE, "what color is it?", **SAMPLED),
        lambda m: m.edit(PICTURE, "make it blue", seed=2, steps=2),
        lambda m: m.chat().send("hello", **SAMPLED),
    ]
    expected = [seen(job(model.load())) for job in jobs]
    for fresh in (model.load(), model.load()):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda job, fresh=fresh: seen(job(fresh)), jobs * 2))
        same(found, expected * 2)


def made_elsewhere(model: Model) -> None:
    """Networks, a drawing or noise in one thread; then a task in another, and back."""
    asked = seen(model.load().ask(PICTURE, "what?", **SAMPLED))
    drawn = seen(model.load().generate("a red star", seed=1, steps=2))
    for prepare in (
        lambda m: [m.parts[name] for name in ("lm_head", "llm", "vision_tower", "mm_projector")],
        lambda m: m.generate("a blue circle", steps=1),
        lambda m: next(m.stream_ask(PICTURE, "what?", **SAMPLED)),
        lambda m: m.decode_latents(noise(m.config, 0, *m.default_size)),
    ):
        for first, then in ((prepare, in_thread), (lambda m, prepare=prepare: in_thread(partial(prepare, m)), None)):
            used = model.load()
            first(used)
            task = partial(used.ask, PICTURE, "what?", **SAMPLED)
            same(seen(then(task) if then else task()), asked)
    used = model.load()
    latents = noise(used.config, 1, *used.default_size)
    same(seen(in_thread(lambda: used.generate("a red star", initial_latents=latents, steps=2))), drawn)
    stream = used.stream_generate("a red star", initial_latents=latents + 0, steps=2)  # `+ 0` is not evaluated
    same(in_thread(lambda: [seen(item) for item in stream][-1]), drawn)


def chat_moves(model: Model) -> None:
    """A conversation goes on in another thread, after whole answers and after one that was closed there."""

    def talk(run: Callable[[Callable[[], Any]], Any]) -> list[str]:
        chat = model.load().chat()
        said = [run(lambda: chat.send("hello", images=PICTURE, **SAMPLED)).text]
        stream = chat.stream("what is it?", **SAMPLED)
        said += [run(lambda: next(stream)).text, next(stream).text]
        run(stream.close)
        said += [run(lambda: chat.send("and its color?", **SAMPLED)).text, chat.send("why?", **SAMPLED).text]
        return said + [message.content for message in chat.messages]

    same(talk(in_thread), talk(lambda task: task()))


def interleaved(model: Model) -> None:
    """One thread takes the items of four streams in turn."""
    expected = alone(model)
    found = list(zip_longest(*streams(model.load())))
    same([[seen(item) for item in items if item is not None] for items in zip(*found, strict=True)], expected)


def resumed_anywhere(model: Model) -> None:
    """Streams whose items are each computed in another thread, as web servers do it, four at a time."""
    expected = alone(model)
    same([[seen(item) for item in in_new_threads(stream)] for stream in streams(model.load())], expected)
    begun = streams(model.load())
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(lambda stream=stream: [seen(i) for i in in_new_threads(stream)]) for stream in begun]
        same([job.result() for job in jobs], expected)


def in_new_threads(stream: Iterator[Any]) -> Iterator[Any]:
    while (item := in_thread(lambda: next(stream, None))) is not None:
        yield item


def nobody_reads_on(model: Model) -> None:
    """Streams that are left open stop no other thread; they can be closed, or go on, anywhere."""
    expected = alone(model)
    used = model.load()
    begun = [stream for stream in streams(used) if next(stream)]
    same(seen(in_thread(lambda: list(streams(used)[0])[-1])), expected[0][-1])
    in_thread(begun.pop().close)  # type: ignore[attr-defined]
    same([[seen(item) for item in stream] for stream in begun], [items[1:] for items in expected[:-1]])


def threads_end_last(model: Model) -> None:
    """The process ends as soon as threads that loaded networks and drew have ended."""
    used = model.load()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: used.generate("a red star", seed=seed, steps=1), range(8)))


SITUATIONS = {
    f.__name__: f
    for f in (first_use, made_elsewhere, chat_moves, interleaved, resumed_anywhere, nobody_reads_on, threads_end_last)
}

if __name__ == "__main__":
    situation, path, kept, forms = sys.argv[1:]
    if forms != "cpu":
        backend.backend = lambda: forms  # type: ignore[assignment, return-value]
    SITUATIONS[situation](Model(path, kept == "kept"))
    assert mx.default_device() == mx.cpu or forms != "cpu"
