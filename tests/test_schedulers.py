from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.errors import OptionError
from mobileo_mlx.schedulers import SCHEDULERS, Scheduler, make_scheduler, shift

NAMES = tuple(SCHEDULERS)


def denoised(scheduler: Scheduler, velocity: object, start: mx.array) -> mx.array:
    x, history = start, []
    for index, timestep in enumerate(scheduler.timesteps):
        x, x_0 = scheduler.step(index, x, velocity(x, float(scheduler.sigmas[index])), history)
        history = [x_0, *history]
        assert timestep >= 0
    return x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50, 1000])
@pytest.mark.parametrize("flow_shift", [0.5, 1.0, 3.0, 6.0])
def test_tables(name: str, steps: int, flow_shift: float) -> None:
    scheduler = make_scheduler(name, steps, flow_shift)
    assert len(scheduler.timesteps) == steps
    assert scheduler.sigmas.shape == (steps + 1,)
    assert scheduler.sigmas.dtype == np.float32
    assert (np.diff(scheduler.sigmas) < 0).all()
    assert 0.9 < scheduler.sigmas[0] <= 1
    assert scheduler.sigmas[-1] == 0
    assert (np.diff(scheduler.timesteps) <= 0).all()
    assert np.abs(scheduler.timesteps - 1000 * scheduler.sigmas[:-1]).max() < 1.001


def test_the_shift_keeps_the_ends_and_works_on_numbers_and_arrays() -> None:
    expected = [0.0, 0.5, 0.75, 1.0]  # 3 s / (1 + 2 s)
    levels = [0.0, 0.25, 0.5, 1.0]
    assert [shift(level, 3.0) for level in levels] == expected
    assert shift(np.array(levels), 3.0).tolist() == expected
    assert np.allclose(np.array(shift(mx.array(levels), 3.0)), expected, rtol=0, atol=1e-7)
    assert shift(0.3, 1.0) == 0.3


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_shift_spends_more_steps_at_high_noise(name: str) -> None:
    middle = [make_scheduler(name, 20, flow_shift).sigmas[10] for flow_shift in (1.0, 3.0, 6.0)]
    assert middle == sorted(middle)
    assert middle[0] < middle[-1] - 0.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20])
def test_a_known_image_is_found_again(name: str, steps: int) -> None:
    """With the true velocity, (x_t - x_0) / sigma, any number of steps ends at x_0."""
    x_0 = mx.random.normal((1, 3, 3, 4), key=mx.random.key(0))
    noise = mx.random.normal((1, 3, 3, 4), key=mx.random.key(1))
    scheduler = make_scheduler(name, steps)
    sigma = float(scheduler.sigmas[0])
    end = denoised(scheduler, lambda x, s: (x - x_0) / s, (1 - sigma) * x_0 + sigma * noise)
    assert mx.allclose(end, x_0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_step_predicts_the_image(name: str) -> None:
    scheduler = make_scheduler(name, 5)
    x, velocity, history = mx.ones((1, 2, 2, 1)), mx.full((1, 2, 2, 1), 0.25), []
    for index in range(5):
        sigma = float(scheduler.sigmas[index])
        x_next, x_0 = scheduler.step(index, x, velocity, history)
        assert mx.allclose(x_0, x - sigma * velocity, atol=1e-6)
        x, history = x_next, [x_0]
    assert mx.allclose(x, x_0, atol=1e-6)  # the last step goes all the way


def test_the_second_order_is_more_accurate() -> None:
    """dx / dsigma = x has the solution x(0) = x(1) / e."""
    errors = {}
    for name in NAMES:
        for steps in (8, 64):
            scheduler = make_scheduler(name, steps, 1.0)
            end = denoised(scheduler, lambda x, sigma: x, mx.array([1.0])).item()
            errors[name, steps] = abs(end - np.exp(-float(scheduler.sigmas[0])))
    assert errors["euler", 64] < errors["euler", 8] / 4
    assert errors["dpm++", 64] < errors["dpm++", 8] / 4
    assert errors["dpm++", 8] < errors["euler", 8] / 4


@pytest.mark.parametrize("name", ["dpm++", "dpm++3"])
def test_the_second_order_needs_the_previous_prediction(name: str) -> None:
    scheduler = make_scheduler(name, 4)
    x, velocity = mx.ones((2, 2)), mx.full((2, 2), 0.5)
    first, _ = scheduler.step(1, x, velocity)
    same, _ = scheduler.step(1, x, velocity, [x - float(scheduler.sigmas[1]) * velocity])
    other, _ = scheduler.step(1, x, velocity, [mx.zeros((2, 2))])
    assert mx.allclose(first, same, atol=1e-6)
    assert not mx.allclose(first, other, atol=1e-3)


def test_the_third_order_needs_two_of_them_and_a_step_after_it() -> None:
    x, velocity, x_1 = mx.ones((2, 2)), mx.full((2, 2), 0.5), mx.full((2, 2), 0.4)
    second, third = make_scheduler("dpm++", 5), make_scheduler("dpm++3", 5)

    def change(index: int, *older: mx.array) -> float:
        ours, plain = (s.step(index, x, velocity, [x_1, *older])[0] for s in (third, second))
        return float(mx.abs(ours - plain).max())

    assert change(2) == 0
    assert change(2, mx.zeros((2, 2))) > 1e-3
    assert change(3, mx.zeros((2, 2))) == change(4, mx.zeros((2, 2))) == 0  # the end of few steps is of lower order


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ddim", 20), "ddim.*dpm\\+\\+, dpm\\+\\+3, euler"),
        (("euler", 0), "0 steps"),
        (("dpm++", -3), "-3 steps"),
        (("dpm++", 1001), "1001 steps"),
        (("euler", 20, 0.0), "flow shift 0.0"),
        (("euler", 20, float("nan")), "flow shift nan"),
        (("dpm++", 20, float("inf")), "flow shift inf"),
    ],
)
def test_impossible_options_are_named(arguments: tuple, expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        make_scheduler(*arguments)
