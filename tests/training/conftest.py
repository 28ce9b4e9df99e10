from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.training.data import read_data
from mobileo_mlx.training.events import Event
from mobileo_mlx.training.loop import StepReport
from mobileo_mlx.training.options import Options
from mobileo_mlx.training.quadruplets import DataError
from mobileo_mlx.training.stages import STAGES, Stage
from mobileo_mlx.training.trainer import FinetuneRun

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def write_lines(folder: Path, lines: list[Any]) -> Path:
    """A JSONL file of these lines; what is no string is written as JSON."""
    path = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def problems(path: Path, **options: Any) -> list[str]:
    """What is wrong with data that can't be trained on."""
    with pytest.raises(DataError) as caught:
        read_data(path, **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with red.png, green.png and blue.png."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 32), colour).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def quadruplets(images: Path) -> Callable[..., Path]:
    """Writes a file of so many samples, every third of them an edit."""

    def write(count: int = 8) -> Path:
        names = list(COLOURS)
        lines = []
        for i in range(count):
            name, other = names[i % 3], names[(i + 1) % 3]
            line = {"prompt": f"a {name} picture, number {i}", "image": f"{name}.png"}
            if i % 3 == 2:
                line |= {"prompt": f"make it {name}", "source_image": f"{other}.png"}
            answer = f"{name}, of course" if i % 2 else name
            lines.append({**line, "question": "what colour is it?", "answer": answer})
        return write_lines(images, lines)

    return write


def options(stage: str | Stage = "lora", **changes: Any) -> Options:
    chosen = (STAGES[stage] if isinstance(stage, str) else stage).adjusted(batch_size=4, learning_rate=1e-3)
    return Options(**{"stage": chosen, "steps": 4, "save_every": 2, "held_out": 0.25, **changes})


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepReport)]


@pytest.fixture
def prepared(quadruplets: Callable[..., Path], tiny_model: Path) -> Callable[..., FinetuneRun]:
    def prepare(stage: str = "lora", *, count: int = 8, **changes: Any) -> FinetuneRun:
        return FinetuneRun.prepare(quadruplets(count), tiny_model, options(stage, **changes))

    return prepare
