"""Samplers of flow matching: tables for each step, and the step itself.

On the straight path x_t = (1 - sigma) x_0 + sigma noise the network predicts the velocity noise - x_0, so that
x_0 = x_t - sigma velocity. Both samplers return that prediction; the one that needs the previous step's gets it as an
argument, and none keeps state.
"""

from __future__ import annotations

import math
from typing import Protocol

import mlx.core as mx
import numpy as np

from .errors import OptionError


class Scheduler(Protocol):
    """What the denoising loop asks of a sampler of n steps.

    Attributes:
        timesteps: (n,), what the network is told, descending from about 1000.
        sigmas: (n + 1,) float32, the noise level before each step, and 0.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, previous: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """One step.

        Args:
            index: 0 to n - 1.
            x_t: the latents at sigmas[index], float32.
            velocity: the network's prediction there.
            previous: the x_0 that the step before returned; None at the first.

        Returns:
            The latents at sigmas[index + 1], and the prediction of x_0.
        """
        ...


class FlowMatchEuler:
    """Euler's method; equal to diffusers' FlowMatchEulerDiscreteScheduler with `shift` = `flow_shift`.

    Args:
        steps: number of steps, 1 or more.
        flow_shift: above 1 more of the steps are spent at high noise: s -> shift s / (1 + (shift - 1) s).
        num_train_timesteps: the timestep at sigma 1.
    """

    def __init__(self, steps: int, flow_shift: float = 3.0, num_train_timesteps: int = 1000):
        n = num_train_timesteps
        # The end points are shifted when the range is made and again with all the others, as diffusers does it.
        low, high = _shifted(np.float64(1 / n), flow_shift), _shifted(np.float64(1.0), flow_shift)
        sigmas = _shifted(np.linspace(high * n, low * n, steps) / n, flow_shift).astype(np.float32)
        self.timesteps = sigmas * n
        self.sigmas = np.append(sigmas, np.float32(0))

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, previous: mx.array | None
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
        sigmas = _shifted(sigmas, flow_shift)[:0:-1]
        self.timesteps = (sigmas * num_train_timesteps).astype(np.int64)
        self.sigmas = np.append(sigmas, 0).astype(np.float32)

    def step(
        self, index: int, x_t: mx.array, velocity: mx.array, previous: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        sigma_s, sigma_t = float(self.sigmas[index]), float(self.sigmas[index + 1])
        x_0 = x_t - sigma_s * velocity
        if sigma_t == 0:
            return x_0, x_0
        alpha_t = 1 - sigma_t
        h = self._log_snr(index + 1) - self._log_snr(index)
        x_next = (sigma_t / sigma_s) * x_t - alpha_t * math.expm1(-h) * x_0
        if previous is not None:
            h_previous = self._log_snr(index) - self._log_snr(index - 1)
            difference = (x_0 - previous) * (h / h_previous)
            x_next = x_next - 0.5 * alpha_t * math.expm1(-h) * difference
        return x_next, x_0

    def _log_snr(self, index: int) -> float:
        """lambda = log(alpha / sigma) at sigmas[index], which is not zero."""
        sigma = float(self.sigmas[index])
        return math.log(1 - sigma) - math.log(sigma)


def _shifted(sigma: np.ndarray | np.float64, shift: float) -> np.ndarray:
    return np.asarray(shift * sigma / (1 + (shift - 1) * sigma))


SCHEDULERS: dict[str, type[FlowMatchEuler] | type[DPMSolverMultistep]] = {
    "dpm++": DPMSolverMultistep,
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
    return SCHEDULERS[name](steps, flow_shift, num_train_timesteps)
