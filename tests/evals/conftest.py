"""What the tests of `mobileo-mlx eval` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from batch.faking import FakeModel
from mobileo_cli.main import main

Command = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command in this process and an empty folder: status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        return main(["eval", *map(str, words)]), *capsys.readouterr()

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = FakeModel(tmp_path / "log")
    monkeypatch.setattr("mobileo_cli.options.load", lambda *names, **options: model)
    monkeypatch.setattr("mobileo_mlx.identity.of", lambda model: {"weights": "fake"})
    return model
