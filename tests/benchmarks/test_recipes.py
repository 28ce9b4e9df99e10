"""What recipes of small models share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from benchmarks.recipes.ahead import ahead


def made(step: int, part: int) -> dict[str, Any]:
    if step == 7:
        raise ValueError("a bad step")
    return {"rows": np.random.default_rng([step, part]).random(5), "process": os.getpid()}


@pytest.mark.skipif(os.name != "posix", reason="processes are forks")
def test_processes_make_the_same_batches() -> None:
    batches = ahead(made, 2, 6)
    for step in range(2, 6):  # as a run that goes on
        for part in range(2):
            batch = batches(step, part)
            assert (batch["rows"] == made(step, part)["rows"]).all()
            assert batch["process"] != os.getpid()


@pytest.mark.skipif(os.name != "posix", reason="processes are forks")
def test_an_error_of_another_process_is_raised() -> None:
    batches = ahead(made, 1, 8)
    batches(6, 0)
    with pytest.raises(ValueError, match="a bad step"):
        batches(7, 0)


def test_without_workers_nothing_is_made_ahead() -> None:
    assert ahead(made, 0, 9) is made
