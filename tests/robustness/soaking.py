"""Mixed tasks in one process; prints what the process holds every so many tasks, as a line of JSON.

python soaking.py TASKS EVERY
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.errors import MobileOError


def main(count: int, every: int) -> None:
    from mobileo_cli.main import main as command

    chance = random.Random(0)
    model = MobileO.load("tiny")
    staged = MobileO.load("tiny", keep_loaded=False)
    chat = model.chat()
    refused = 0
    small = {"width": 64, "height": 64}
    words = ("red", "a blue circle", "two squares", "é 😀", "nothing at all, but at some length")

    def picture() -> Image.Image:
        return Image.effect_noise((chance.randint(1, 90), chance.randint(1, 90)), 60)

    def run(*arguments: str) -> None:
        nonlocal refused
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            refused += command(list(arguments)) == 2

    def talk() -> None:
        if len(chat.messages) > 12:
            chat.clear()
        images = [picture()] if chance.random() < 0.3 else []
        list(chat.stream(chance.choice(words), images=images, max_tokens=4))

    def stop_talking() -> None:
        stream = chat.stream(chance.choice(words), max_tokens=30)
        next(stream)
        stream.close()

    def stop_drawing() -> None:
        stream = model.stream_generate(chance.choice(words), seed=chance.randrange(99), steps=4, **small)
        next(stream)
        if chance.random() < 0.5:
            stream.close()

    tasks: list[Callable[[], object]] = [
        lambda: model.generate(chance.choice(words), seed=chance.randrange(99), steps=chance.randint(1, 4), **small),
        lambda: model.generate("a cat", seed=[1, 2], steps=1, width=96, height=32 * chance.randint(2, 4)),
        lambda: staged.generate(chance.choice(words), steps=1, **small),
        lambda: model.edit(picture(), chance.choice(words), steps=2, **small),
        lambda: model.ask(picture(), chance.choice(words), max_tokens=chance.randint(1, 8)),
        lambda: model.ask([picture(), picture()], "How many?", max_tokens=2, temperature=1.0),
        talk,
        talk,
        stop_talking,
        stop_drawing,
        lambda: run("generate", "a cat", "-m", "tiny", "--steps", "1", "--size", "64x64", "-o", "a.png", "--overwrite"),
        lambda: run("generate", "--from-image", "a.png", "-m", "tiny", "--steps", "1", "-o", "b.png", "--overwrite"),
        lambda: run("info", "tiny"),
        lambda: run("ask", "no-such.png", "What?", "-m", "tiny"),
        lambda: run("generate", "x", "--size", "1x1"),
        lambda: model.ask(b"\x89PNG\r\n\x1a\n broken", "What?"),
        lambda: model.generate("a " * 5000),
        lambda: model.generate("a cat", steps=0),
        lambda: MobileO.load(Path("no-such-model")),
        lambda: MobileO.load("tiny", adapter="no-such-adapter"),
    ]
    for number in range(1, count + 1):
        try:
            chance.choice(tasks)()
        except MobileOError:
            refused += 1
        if number % every == 0:
            kept = model.parts.cache.nbytes + staged.parts.cache.nbytes
            # What was read before is kept on purpose, up to a limit; without it the rest has to be the same.
            model.parts.cache.clear()
            staged.parts.cache.clear()
            chat.clear()
            gc.collect()
            print(json.dumps({"tasks": number, "refused": refused, "kept": kept, **holdings()}), flush=True)


def holdings() -> dict[str, int]:
    """What the process holds: bytes of memory, open files and threads."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "active": mx.get_active_memory(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
