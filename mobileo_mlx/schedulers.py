"""Samplers of flow matching: tables for each step, and the step itself.

On the straight path x_t = (1 - sigma) x_0 + sigma noise the network predicts the velocity noise - x_0, so that
x_0 = x_t - sigma velocity. All samplers return that prediction; those that need the ones of the steps before get them
as an argument, and none keeps state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import mlx.core as mx
import numpy as np

from .errors import OptionError

Sigmas = TypeVar("Sigmas", float, np.ndarray, mx.array)


def shift(sigmas: Sigmas, flow_shift: float) -> Sigmas:
    """Noise levels in [0, 1] moved towards 1 where `flow_shift` is above 1; 0 and 1 stay (arXiv 2403.03206, 5.3.2)."""
    return flow_shift * sigmas / (1 + (flow_shift - 1) * sigmas)


class Scheduler(Protocol):
    """What the denoising loop asks of a sampler of n steps.

    Attributes:
        timesteps: (n,), what the network gets, descending from about 1000.
        sigmas: (n + 1,) float32, the noise level before each step, and 0.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, x0_history: Sequence[mx.array] = ()
    ) -> tuple[mx.array, mx.array]:
        """One step.

        Args:
            index: 0 to n - 1.
            x_t: the latents at sigmas[index], float32.
            velocity: the network's prediction there.
            x0_history: the x_0 that the steps before returned, the newest first. The samplers here read two at most;
                with fewer, as at the first steps, a step is of lower order.

        Returns:
            The latents at sigmas[index + 1], and the prediction of x_0.
        """
        ...


def _fall(sigmas: np.ndarray) -> bool:
    return bool(np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all())


class FlowMatchEuler:
    """Euler's method; equal to diffusers' FlowMatchEulerDiscreteScheduler with `shift` = `flow_shift`.

    Args:
        steps: number of steps, 1 or more.
        flow_shift: above 1 more of the steps are spent at high noise; see `shift`.
        num_train_timesteps: the timestep at sigma 1.
    """

    def __init__(self, steps: int, flow_shift: float = 3.0, num_train_timesteps: int = 1000):
        n = num_train_timesteps
        # The end points are shifted when the range is made and again with all the others, as diffusers does it.
        low, high = shift(1 / n, flow_shift), shift(1.0, flow_shift)
        sigmas = shift(np.linspace(high * n, low * n, steps) / n, flow_shift).astype(np.float32)
        self.timesteps = sigmas * n
        self.sigmas = np.append(sigmas, np.float32(0))

    def is_possible(self) -> bool:
        """Whether the noise levels differ in float32, which an extreme shift prevents."""
        return _fall(self.sigmas)

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, x0_history: Sequence[mx.array] = ()
    ) -> tuple[mx.array, mx.array]:
        sigma, sigma_next = float(self.sigmas[index]), float(self.sigmas[index + 1])
        return x_t + (sigma_next - sigma) * velocity, x_t - sigma * velocity


class DPMSolverMultistep:
    """DPM-Solver++ (arXiv 2211.01095, algorithm 2M, midpoint) on flow sigmas: the original's sampler.

    Equal to diffusers' DPMSolverMultistepScheduler with `use_flow_sigmas`, `solver_order` 2, final sigma zero and
    `lower_order_final`. Timesteps are whole numbers: 1000 sigma, truncated.

    Args:
        steps: number of steps, 1 or more. The first and the last one are of first order.
        flow_shift: above 1 more of the steps are spent at high noise.
        num_train_timesteps: the timestep at sigma 1.
    """

    def __init__(self, steps: int, flow_shift: float = 3.0, num_train_timesteps: int = 1000):
        sigmas = 1 - np.linspace(1, 1 / num_train_timesteps, steps + 1)
        sigmas = shift(sigmas, flow_shift)[:0:-1]
        self.timesteps = (sigmas * num_train_timesteps).astype(np.int64)
        self.sigmas = np.append(sigmas, 0).astype(np.float32)

    def is_possible(self) -> bool:
        """Whether the noise levels differ in float32, from each other and from pure noise."""
        return _fall(self.sigmas) and bool(self.sigmas[0] < 1)

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, x0_history: Sequence[mx.array] = ()
    ) -> tuple[mx.array, mx.array]:
        sigma_s, sigma_t = float(self.sigmas[index]), float(self.sigmas[index + 1])
        x_0 = x_t - sigma_s * velocity
        if sigma_t == 0:
            return x_0, x_0
        alpha_t = 1 - sigma_t
        h = self._log_snr(index + 1) - self._log_snr(index)
        x_next = (sigma_t / sigma_s) * x_t - alpha_t * math.expm1(-h) * x_0
        if x0_history:
            h_0 = self._log_snr(index) - self._log_snr(index - 1)
            difference = (x_0 - x0_history[0]) * (h / h_0)
            x_next = x_next - 0.5 * alpha_t * math.expm1(-h) * difference
        return x_next, x_0

    def _log_snr(self, index: int) -> float:
        """lambda = log(alpha / sigma) at sigmas[index], which is not zero."""
        sigma = float(self.sigmas[index])
        return math.log(1 - sigma) - math.log(sigma)


class DPMSolverMultistep3(DPMSolverMultistep):
    """DPM-Solver++ of third order (3M): the same steps and work, closer to the exact path where the steps are few.

    Equal to diffusers' DPMSolverMultistepScheduler with `use_flow_sigmas`, `solver_order` 3, final sigma zero and
    `lower_order_final`. With lambda = log(alpha / sigma), h its growth in this step and h_0, h_1 in the two before,
    r = h_0 / h and q = h_1 / h, the predictions x_0, x_1, x_2 (the newest first) give the divided differences

        a = (x_0 - x_1) / r,   b = (x_1 - x_2) / q,   D1 = a + r (a - b) / (r + q),   D2 = (a - b) / (r + q)

    and, with e = exp(-h) - 1,

        x_next = sigma_t / sigma_s x_t - alpha_t (e x_0 - (e / h + 1) D1 + ((e + h) / h^2 - 1/2) D2).

    The first step and the last are of first order, the second of second order, and of fewer than 15 steps the last but
    one, too.
    """

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, x0_history: Sequence[mx.array] = ()
    ) -> tuple[mx.array, mx.array]:
        left = len(self.timesteps) - 1 - index
        if len(x0_history) < 2 or left == 0 or (left == 1 and len(self.timesteps) < 15):
            return super().step(index, x_t, velocity, x0_history)
        sigma_s, sigma_t = float(self.sigmas[index]), float(self.sigmas[index + 1])
        x_0 = x_t - sigma_s * velocity
        h, h_0, h_1 = (self._log_snr(i + 1) - self._log_snr(i) for i in (index, index - 1, index - 2))
        r, q = h_0 / h, h_1 / h
        x_1, x_2 = x0_history[:2]
        a, b = (x_0 - x_1) / r, (x_1 - x_2) / q
        d_1, d_2 = a + r * (a - b) / (r + q), (a - b) / (r + q)
        e = math.expm1(-h)
        change = e * x_0 - (e / h + 1) * d_1 + ((e + h) / h**2 - 0.5) * d_2
        return (sigma_t / sigma_s) * x_t - (1 - sigma_t) * change, x_0


SCHEDULERS: dict[str, type[FlowMatchEuler] | type[DPMSolverMultistep]] = {
    "dpm++": DPMSolverMultistep,
    "dpm++3": DPMSolverMultistep3,
    "euler": FlowMatchEuler,
}


def make_scheduler(name: str, steps: int, flow_shift: float = 3.0, num_train_timesteps: int = 1000) -> Scheduler:
    """The sampler of that name in `SCHEDULERS`.

    Raises:
        OptionError: the name is unknown, `steps` is not 1 to `num_train_timesteps`, or `flow_shift` is not positive.
    """
    if name not in SCHEDULERS:
        raise OptionError(f"there is no scheduler {name!r}; the schedulers are {', '.join(SCHEDULERS)}.")
    if not 1 <= steps <= num_train_timesteps:
        raise OptionError(f"{steps} steps are not possible; choose 1 to {num_train_timesteps}.")
    if not (math.isfinite(flow_shift) and flow_shift > 0):
        raise OptionError(f"flow shift {flow_shift} is not possible; choose a number above 0, such as 3.")
    try:
        scheduler = SCHEDULERS[name](steps, flow_shift, num_train_timesteps)
        possible = scheduler.is_possible()
    except ArithmeticError:
        possible = False
    if not possible:
        raise OptionError(f"flow shift {flow_shift:g} leaves no distance between noise levels; choose one nearer to 3.")
    return scheduler
