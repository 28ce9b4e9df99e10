from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from random_adapter import write_random_adapter

from .places import Place, environment


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_random_adapter(folder, tiny_model)
    return folder


@pytest.fixture(scope="session")
def quadruplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of eight samples."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "white") * 2):
        Image.new("RGB", (40, 32), colour).save(folder / f"{i}.png")
        line = {"prompt": f"a {colour} square", "image": f"{i}.png", "question": "what colour?", "answer": colour}
        lines.append(json.dumps(line))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


@pytest.fixture(scope="session")
def arguments(tiny_model: Path, adapter: Path, quadruplets: Path) -> dict[str, list[str]]:
    """Commands that write, by name."""
    drawing = ["-m", str(tiny_model), "--steps", "2", "--size", "64x64"]
    several = ["-n", "3", "--seed", "1", "-o", "{seed}.png", "--overwrite", "--previews", "previews"]
    training = ["--steps", "6", "--batch-size", "2", "--save-every", "2", "--sample-every", "2", "--held-out", "0.25"]
    return {
        "generate": ["generate", "a cat", *drawing, *several],
        "edit": ["edit", str(quadruplets.with_name("0.png")), "redder", *drawing, "--seed", "1", "-o", "edited"],
        "convert": ["convert", str(tiny_model), "new", "--quantize", "llm=8"],
        "fuse": ["fuse", str(tiny_model), str(adapter), "new"],
        "finetune": [
            "finetune", "--quadruplets", str(quadruplets), "-m", str(tiny_model), "--out", "new", "--resume", *training,
            "--rank", "2",
        ],
        "random-model": ["random-model", "new"],
        "chat": ["chat", "-m", str(tiny_model), "--max-tokens", "2"],
    }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, arguments: dict[str, list[str]]) -> Callable[..., Place]:
    """Makes a place for a command, in a new folder or a given one."""
    made: list[Place] = []

    def make(command: str, folder: Path | None = None) -> Place:
        target = "new" if command in ("convert", "fuse", "random-model") else ""
        stdin = "Hello\n" * 20 + "/save talk.json\n" if command == "chat" else ""
        folder = folder or tmp_path / f"{command}-{len(made)}"
        made.append(Place(folder, arguments[command], environment(tmp_path), target, stdin))
        return made[-1]

    return make
