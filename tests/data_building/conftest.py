from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.datasets.build import Build, Options
from mobileo_mlx.datasets.kept import Kept
from mobileo_mlx.datasets.samples import Sample

COLOURS = ("red", "green", "blue", "white", "cyan", "black", "orange", "purple", "brown", "pink")


def picture(path: Path, number: int = 0) -> Path:
    """A file with a picture that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40 + number // len(COLOURS), 32), COLOURS[number % len(COLOURS)])
    image.putpixel((number % 40, number % 32), (1, 2, 3))
    image.save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An empty folder for pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def built(photos: Path, tmp_path: Path) -> Callable[..., Built]:
    """Builds `data.jsonl` of the folder with options, without a model."""

    def run(kept: Kept | None = None, out: str = "data.jsonl", **options: Any) -> Built:
        build = Build(photos, tmp_path / out, Options(**options), overwrite=True)
        try:
            for _ in build.look():
                pass
            samples = build.samples(kept)
            if samples:
                build.write(samples)
            return Built(build, samples, tmp_path / out)
        finally:
            build.close()

    return run


class Built:
    """What a build has made."""

    def __init__(self, build: Build, samples: list[Sample], out: Path) -> None:
        self.build, self.samples, self.out = build, samples, out

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects of the file."""
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by picture."""
        return {sample.picture.path: sample.prompt for sample in self.samples}

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Kinds and sentences."""
        return [(kind, str(problem)) for kind, problem in self.build.left_out]
