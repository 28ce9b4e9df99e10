"""A command answers at once: processor time of fresh processes, and what they import."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.startup import HEAVY, StartUp, measure, started


@pytest.fixture(scope="module")
def results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StartUp]:
    return measure(str(tiny_model), tmp_path_factory.mktemp("startup"))


def test_import_and_help_and_the_first_step_are_in_time(results: list[StartUp]) -> None:
    late = [f"{result.name}: {result.seconds:.2f} s" for result in results if result.seconds > result.target]
    assert not late


def test_drawing_imports_nothing_heavy(results: list[StartUp]) -> None:
    assert {result.name: result.heavy for result in results} == {result.name: () for result in results}


def test_what_is_imported_is_noticed() -> None:
    assert started("import sys; sys.modules['torch'] = sys")[1] == ("torch",)
    assert "torch" in HEAVY


def test_processor_time_is_counted() -> None:
    assert started("import time\nwhile time.process_time() < 0.5: pass")[0] >= 0.5
