"""The samplers against diffusers', at every number of steps that is of use."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from mobileo_mlx.schedulers import (  # noqa: E402
    DPMSolverMultistep,
    DPMSolverMultistep3,
    FlowMatchEuler,
    Scheduler,
)

from .common import assert_close, normal  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = range(1, 51)
SHIFTS = (1.0, 3.0, 6.0)


def dpm(steps: int, shift: float, order: int = 2) -> tuple[Any, Scheduler]:
    theirs = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    theirs.set_timesteps(steps)
    return theirs, (DPMSolverMultistep if order == 2 else DPMSolverMultistep3)(steps, shift)


def dpm3(steps: int, shift: float) -> tuple[Any, Scheduler]:
    return dpm(steps, shift, order=3)


def euler(steps: int, shift: float) -> tuple[Any, Scheduler]:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    return theirs, FlowMatchEuler(steps, shift)


PAIRS = {"dpm++": dpm, "dpm++3": dpm3, "euler": euler}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", PAIRS)
def test_tables(name: str, shift: float) -> None:
    for steps in STEPS:
        theirs, ours = PAIRS[name](steps, shift)
        sigmas = theirs.sigmas.numpy()
        assert sigmas.shape == ours.sigmas.shape
        np.testing.assert_allclose(ours.sigmas, sigmas, rtol=0, atol=1e-6, err_msg=f"{steps} steps")
        if name != "euler":  # whole numbers: one off would be another input of the network
            np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy(), err_msg=f"{steps} steps")
        else:
            np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, err_msg=f"{steps} steps")


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", PAIRS)
def test_trajectories(name: str, shift: float) -> None:
    """Both run freely from the same noise, on a velocity that depends on sample and timestep."""
    start, a, b, c = (normal(1, 4, 3, 2, seed=seed) for seed in range(4))
    for steps in STEPS:
        theirs, ours = PAIRS[name](steps, shift)
        x, y, history = torch.from_numpy(start), mx.array(start), []
        for index, timestep in enumerate(theirs.timesteps):
            velocity = torch.tanh(
                torch.from_numpy(a) * x + torch.from_numpy(b) * (timestep / 1000) + torch.from_numpy(c)
            )
            x = theirs.step(velocity, timestep, x).prev_sample
            moment = ours.timesteps[index].item() / 1000
            ours_velocity = mx.tanh(mx.array(a) * y + mx.array(b) * moment + mx.array(c))
            y, x_0 = ours.step(index, y, ours_velocity, history)
            history = [x_0, *history]
        assert_close(y, x)


def test_training_table() -> None:
    """Training draws from the table that diffusers has before `set_timesteps`."""
    theirs, ours = diffusers.FlowMatchEulerDiscreteScheduler(), FlowMatchEuler(1000, 1.0)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    np.testing.assert_allclose(ours.sigmas[:-1], theirs.sigmas.numpy(), rtol=0, atol=1e-7)
