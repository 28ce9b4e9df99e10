"""~ stands for the user's folder in every path, also where no shell has seen to it, as in --out=~/x."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from random_adapter import write_random_adapter


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("random-model ~/x", "x/config.json"),
        ("convert {tiny} ~/x", "x/config.json"),
        ("fuse {tiny} ~/adapter ~/x", "x/config.json"),
        ("generate cat --steps 1 --model {tiny} --output=~/x.png --previews=~/p", "x.png"),
        ("generate --prompt-file=~/prompt --steps 1 --model {tiny} --output=~/x.png --adapter=~/adapter", "x.png"),
        ("edit ~/photo.png red --steps 1 --model={tiny} --output=~/x.png", "x.png"),
        ("finetune --quadruplets=~/data.jsonl --steps 1 --model {tiny} --out=~/x", "x/adapter_config.json"),
    ],
)
def test_the_users_folder(here, home: Path, work: Path, photo: Path, tiny_model: Path, line: str, written: str) -> None:
    (home / "prompt").write_text("a cat")
    (home / "photo.png").write_bytes(photo.read_bytes())
    sample = {"prompt": "a cat", "image": "photo.png", "question": "What?", "answer": "A cat."}
    (home / "data.jsonl").write_text(2 * (json.dumps(sample) + "\n"))
    if "adapter" in line:
        write_random_adapter(home / "adapter", tiny_model)
    result = here(*line.format(tiny=tiny_model).split())
    assert result.status == 0, result.err
    assert (home / written).exists()
    assert result.lines[-1] == str(home / written.partition("/")[0])  # which a program can open
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "generate --prompt-file ~nobody-here/prompt",
        "generate cat --adapter ~nobody-here/adapter",
        "generate cat --output ~nobody-here/cat.png",
        "generate cat --previews ~nobody-here/cat",
        "generate --from-image ~nobody-here/cat.png",
        "edit ~nobody-here/cat.png red",
        "ask ~nobody-here/cat.png What?",
        "finetune --out x --quadruplets ~nobody-here/data.jsonl",
        "finetune --quadruplets data.jsonl --out ~nobody-here/x",
    ],
)
def test_a_user_who_is_not_there(here, work: Path, line: str) -> None:
    """As in a shell, the name stays as it is then."""
    result = here(*line.split(), "--model", "tiny")
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith("mobileo-mlx: error: ")
    assert "~nobody-here" in result.err.splitlines()[-1]
    assert list(work.iterdir()) == []
