"""What recipes of small models share."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.recipes import losses
from benchmarks.recipes.ahead import ahead
from benchmarks.shapes.recipe.tiny import tiny_config

WIDTH = 8


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


def test_the_kinds_of_features_are_named() -> None:
    kinds = mx.eye(WIDTH)
    shown = mx.array([[0, 3, -1], [5, -1, -1]], mx.int32)
    targets = 6 * mx.where((shown >= 0)[..., None], kinds[mx.maximum(shown, 0)], 0)
    loss = losses.feature_loss(lambda symbols: symbols, targets.std(), kinds)

    def parts_of(features: mx.array) -> dict[str, float]:
        batch = {"pixels": mx.zeros((2, 4, 4, 3), mx.uint8), "symbols": targets, "kinds": shown}
        _, parts = loss(_Seen(features), batch, mx.random.key(0))
        return {name: part.item() for name, part in parts.items()}

    right, mean = parts_of(targets), parts_of(mx.broadcast_to(targets.mean(axis=0), targets.shape))
    assert right["accuracy"] == 1
    assert right["error"] == 0
    assert right["named"] < 0.01
    assert mean["accuracy"] < 1
    assert mean["named"] > 0.3
    # What stands where nothing is has no kind.
    other = mx.where((shown >= 0)[..., None], targets, 6 * kinds[:3][None])
    assert parts_of(other)["named"] == pytest.approx(right["named"])


def test_first_parts_of_a_vision_tower_can_be_kept() -> None:
    config = tiny_config(300, (0,))
    pictures = mx.random.randint(0, 255, (4, config.image_size, config.image_size, 3)).astype(mx.uint8)
    begun = dict(tree_flatten(losses.vision_model(config, pictures).parameters()))
    stem = [(name, array) for name, array in begun.items() if name.startswith("vision_tower.patch_embed.")]
    model: Any = losses.vision_model(config, pictures, stem, kept=1)
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert trained
    assert not any(name.startswith("vision_tower.patch_embed.") for name in trained)
    assert not any(block.training for block in model.vision_tower.patch_embed)
    assert all(mx.allclose(dict(tree_flatten(model.parameters()))[name], array, atol=1e-3) for name, array in stem)
