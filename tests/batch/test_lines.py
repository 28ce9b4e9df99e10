"""Tasks that a command has made itself: `batch_run.run_lines`."""

from __future__ import annotations

from pathlib import Path

import pytest
from mobileo_cli import batch_run

from mobileo_mlx.batch.jobs import MADE
from mobileo_mlx.errors import CheckpointError, OptionError

from .conftest import prompts, records
from .faking import FakeModel


def test_lines_are_done_once_and_may_be_added(tmp_path: Path, fake: FakeModel) -> None:
    first = batch_run.run_lines(prompts(3), tmp_path / "out", {}, {"steps": 2})
    assert (first.progress.done, first.progress.computed) == (3, 3)
    more = batch_run.run_lines(prompts(5), tmp_path / "out", {}, {"steps": 2})
    assert (more.folder, more.progress.done, more.progress.computed) == (tmp_path / "out", 5, 2)
    assert [record["id"] for record in records(more.folder / "results.jsonl")] == ["p1", "p2", "p3", "p4", "p5"]


@pytest.mark.parametrize("lines", [prompts(2), [*prompts(2), {"id": "p3", "prompt": "another"}, *prompts(5)[3:]]])
def test_a_folder_of_other_lines_is_refused(tmp_path: Path, fake: FakeModel, lines: list[dict[str, str]]) -> None:
    batch_run.run_lines(prompts(3), tmp_path / "out", {}, {})
    before = (tmp_path / "out" / MADE).read_bytes()
    with pytest.raises(OptionError, match="was begun with other tasks"):
        batch_run.run_lines(lines, tmp_path / "out", {}, {})
    assert (tmp_path / "out" / MADE).read_bytes() == before


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        batch_run.run_lines(prompts(3), tmp_path / "out", {"model": str(tmp_path / "none")}, {})
    assert not (tmp_path / "out").exists()


def test_options_of_tasks() -> None:
    given = {"steps": 7, "temperature": 0.5, "model": "tiny", "guidance_interval": "0.1,0.9"}
    chosen = batch_run.chosen_options(given, "generate", seed=3, size="96x64")
    assert chosen == {"steps": 7, "guidance_interval": (0.1, 0.9), "seed": 3, "width": 96, "height": 64}
    assert batch_run.chosen_options(given, "caption") == {"temperature": 0.5}
    names = {parameter.name for parameter in batch_run.task_options("edit")}
    assert {"steps", "strength"} <= names
    assert not {"seed", "width", "temperature"} & names
    with pytest.raises(OptionError, match="steps"):
        batch_run.chosen_options({"steps": 0}, "generate")
