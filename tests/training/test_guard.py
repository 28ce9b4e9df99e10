from __future__ import annotations

import math

import numpy as np
import pytest

from mobileo_mlx.training.guard import DivergenceGuard, RunningMean


def memorised(seed: int, batch_size: int = 1, steps: int = 3000) -> np.ndarray:
    """Losses of a run on one picture: at first as they were, then by noise level as measured after 700 steps."""
    rng = np.random.default_rng(seed)
    levels = rng.random((steps, batch_size))
    learned = np.exp(np.interp(levels, [0, 0.02, 0.1, 0.2, 1], np.log([0.95, 0.95, 0.44, 0.012, 0.003])))
    before = np.where(levels < 0.2, 0.9, 0.4)
    share = np.exp(-np.arange(steps) / 150)[:, None]
    spread = np.exp(0.3 * rng.standard_normal(levels.shape))
    return (before**share * learned ** (1 - share) * spread).mean(axis=1)


def stopped_at(losses: np.ndarray) -> int | None:
    guard = DivergenceGuard()
    return next((step for step, loss in enumerate(losses) if guard.diverged(float(loss))), None)


def test_a_running_mean_begins_with_what_there_is() -> None:
    mean = RunningMean()
    assert [mean.add(4.0), mean.add(4.0)] == [4.0, 4.0]
    values = [mean.add(1.0) for _ in range(200)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_healthy_training_is_never_stopped(batch_size: int) -> None:
    assert not [seed for seed in range(200) if stopped_at(memorised(seed, batch_size)) is not None]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_nor_where_some_samples_can_not_be_learned(batch_size: int, share: float) -> None:
    """All but a share of the samples have a thousandth of their loss."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = np.where(rng.random((3000, batch_size)) < share, 1.0, 0.001)
        assert stopped_at((losses * np.exp(0.3 * rng.standard_normal(losses.shape))).mean(axis=1)) is None


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("begin", [100, 700])
def test_a_loss_that_explodes_is_stopped_at_once(batch_size: int, begin: int) -> None:
    for seed in range(20):
        losses = memorised(seed, batch_size, 1000)
        losses[begin:] *= 2.0 ** np.minimum(np.arange(1000 - begin), 100)
        assert begin < (stopped_at(losses) or 0) < begin + 40


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_model_that_forgets_everything_is_stopped(batch_size: int) -> None:
    """Its loss is as large at every noise level as what it should predict."""
    for seed in range(20):
        losses = memorised(seed, batch_size)
        losses[1000:] = 1.5
        assert 1000 < (stopped_at(losses) or 0) < 1400


def test_what_is_as_good_as_no_loss_is_no_measure() -> None:
    assert stopped_at(np.array([0.0] * 300 + [1e-9] * 300 + [0.01] * 300)) is None


def test_few_steps_say_nothing() -> None:
    guard = DivergenceGuard()
    assert not any(guard.diverged(loss) for loss in [0.01] * 5 + [1.0] * 30)
    assert guard.lowest == math.inf
