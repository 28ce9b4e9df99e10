from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .faking import FakeModel

FAKING = Path(__file__).with_name("faking.py")


@dataclass
class Place:
    """A folder with a jobs file and the output of `batch`, computed by processes with a fake model."""

    folder: Path

    @property
    def jobs(self) -> Path:
        return self.folder / "jobs.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def write(self, lines: Sequence[Any]) -> None:
        """The jobs file: a text as it is, all else as JSON."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.jobs.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")

    def arguments(self, *options: object) -> list[str]:
        words = [sys.executable, str(FAKING), str(self.log), "batch", str(self.jobs), "--out", str(self.out)]
        return [*words, *map(str, options)]

    def start(self, *options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )

    def run(self, *options: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def computed(self) -> list[str]:
        """The texts of all tasks that were computed, in the order in which they were."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def results(self) -> list[dict[str, Any]]:
        return records(self.out / "results.jsonl")

    def failures(self) -> list[dict[str, Any]]:
        return records(self.out / "failed.jsonl")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts(count: int, word: str = "prompt") -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "prompt": f"{word} {i}"} for i in range(1, count + 1)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    """A fake model, which the command loads in this process."""
    model = FakeModel(tmp_path / "log")
    monkeypatch.setattr("mobileo_cli.options.load", lambda *names, **options: model)
    monkeypatch.setattr("mobileo_mlx.identity.of", lambda model: {"weights": "fake"})
    return model


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture in two colours."""
    image = Image.new("RGB", (96, 64), (200, 30, 30))
    image.paste((40, 60, 200), (0, 32, 48, 64))
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    image.save(path)
    return path
