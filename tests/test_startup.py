"""What each way to start imports, seen from a fresh process; how long it takes is a test of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.startup import COMPUTING, HEAVY, measure, started, starts


@pytest.mark.parametrize("index", range(3), ids=["import", "help", "generate"])
def test_nothing_unwanted_is_imported(index: int, tiny_model: Path, tmp_path: Path) -> None:
    start = starts(str(tiny_model), tmp_path)[index]
    assert started(start.source, start.arguments, start.unwanted)[1] == ()


def test_what_is_unwanted_where() -> None:
    before_computing, also_before_computing, to_the_first_step = (start.unwanted for start in starts("m", Path()))
    assert {"mlx", "numpy", "PIL", "tokenizers"} <= set(COMPUTING) <= set(before_computing)
    assert before_computing == also_before_computing
    assert {"mlx_lm", "transformers", "torch"} <= set(to_the_first_step)


def test_an_import_is_noticed() -> None:
    assert started("import sys; sys.modules['torch'] = sys")[1] == ("torch",)
    assert "torch" in HEAVY


@pytest.mark.timing
def test_starts_are_in_time(tiny_model: Path, tmp_path: Path) -> None:
    results = measure(str(tiny_model), tmp_path)
    assert [f"{result.name}: {result.seconds:.2f} s" for result in results if result.seconds > result.target] == []


@pytest.mark.timing
def test_processor_time_is_counted() -> None:
    assert started("import time\nwhile time.process_time() < 0.5: pass")[0] >= 0.5
