"""The command in a process whose model draws in no time.

    python faking.py LOG COMMAND...

Its pictures depend on the prompt and the seed alone. Each task that it finishes is a line in LOG. What a prompt begins
with may have it do otherwise: "die" kills the process, "fail" raises an error, "slow" waits, "until PATH" waits for a
file.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from mobileo_mlx.errors import ImageError, NotFiniteError

SIDE = 8


class FakeModel:
    """Stands for `MobileO` where only the results' way into files counts.

    Args:
        log: gets a line for each task that it has computed.
    """

    config = speeds = None

    def __init__(self, log: Path | None = None) -> None:
        self.log = log

    def generate(self, prompt: str, *, seed: int = 0, **options: Any) -> Any:
        """A picture of noise."""
        self._act(prompt)
        digest = hashlib.sha256(f"{prompt} {seed} {sorted(options.items())}".encode()).digest()
        noise = np.random.default_rng(list(digest)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        settings = {"task": "generate", "prompt": prompt, **options, "seed": seed}
        return SimpleNamespace(images=[Image.fromarray(noise)], metadata=lambda index: settings)

    def edit(self, image: Image.Image, instruction: str, **options: Any) -> Any:
        """The same for any image."""
        return self.generate(instruction, **options)

    def ask(self, images: Any, question: str, **options: Any) -> Any:
        """An answer that repeats the question."""
        self._act(question)
        return SimpleNamespace(text=f"{len(images)} for {question}", finish_reason="stop")

    def _act(self, text: str) -> None:
        if text.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("fail"):
            raise ImageError(f"'{text}' is damaged.")
        if text.startswith("nan"):
            raise NotFiniteError("dit")
        if text.startswith("bug"):
            raise RuntimeError("a bug")
        if text.startswith("slow"):
            time.sleep(0.02)
        if text.startswith("until"):
            while not Path(text.split()[1]).exists():
                time.sleep(0.02)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{text}\n")


def main() -> int:
    from mobileo_cli.main import main as command

    model = FakeModel(Path(sys.argv[1]))
    with (
        mock.patch("mobileo_cli.options.load", return_value=model),
        mock.patch("mobileo_mlx.identity.of", return_value={"weights": "fake"}),
    ):
        return command(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
