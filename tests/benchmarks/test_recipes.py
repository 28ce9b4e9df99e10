"""What recipes of small models share."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.recipes import losses
from benchmarks.recipes.ahead import ahead

PLACES, WIDTH = 3, 8


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


class _Seen(nn.Module):
    """A vision tower that has seen everything, with an error."""

    def __init__(self, features: mx.array):
        super().__init__()
        self.features = features

    def vision_tower(self, pictures: mx.array) -> mx.array:
        return self.features

    def mm_projector(self, features: mx.array) -> mx.array:
        return features


def told_apart(features: mx.array, targets: mx.array) -> float:
    loss = losses.feature_loss(lambda symbols: symbols, targets.std(), tell_apart=1)
    batch = {"pixels": mx.zeros((len(targets), 4, 4, 3), mx.uint8), "symbols": targets}
    value, parts = loss(_Seen(features), batch, mx.random.key(0))
    assert value.item() == pytest.approx((parts["error"] + parts["apart"]).item())
    return parts["apart"].item()


def test_features_are_told_apart_by_their_targets() -> None:
    targets = 4 * mx.random.normal((6, PLACES, WIDTH), key=mx.random.key(1))
    mean = mx.broadcast_to(targets.mean(axis=0), targets.shape)
    assert told_apart(targets, targets) < 1e-3
    assert told_apart(targets[::-1], targets) > 10
    assert told_apart(targets, targets) < told_apart(0.2 * targets + 0.8 * mean, targets)
    # Two pictures that show the same in a place are both right there.
    twice = mx.concatenate([targets, targets])
    assert told_apart(twice, twice) < 1e-3
