"""SiLU, GELU and the exponential of a softmax, fast on a CPU too.

MLX's CPU backend computes exp and erf one element at a time on x86. A rational function has the same values up to
rounding, and one compiled kernel of it runs some five times as fast.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

Activation = Callable[[mx.array], mx.array]

# Below this many elements the compiler's second, once for each machine, is not worth it.
_LARGE = 2**17

# exp(y) for -2 <= y <= 0, a least-squares fit of relative errors: 2.3e-7 at most.
_EXP_RANGE, _EXP_SQUARINGS = 2.0, 4
_EXP_P = (1.0, 0.999992832, 0.499922975, 0.166371877, 0.0411093644, 0.00774609993, 0.0010293269, 7.14649879e-05)

# 1 / (1 + exp(-x)) - 1/2 = x P(x^2) / Q(x^2) for |x| <= 18, a least-squares fit reweighted to even errors: 6e-10.
_SIGMOID_RANGE = 18.0
_SIGMOID_P = (0.249999999, 0.00854853214, 6.03991244e-05, 1.09197123e-07, 2.97560665e-11, -2.96133553e-15)
_SIGMOID_Q = (1.0, 0.117527457, 0.00170221968, 6.14661895e-06, 5.01497138e-09)

# erf(x / sqrt(2)) / 2 likewise for |x| <= 5.6, times |x| good to 3e-8.
_ERF_RANGE = 5.6
_ERF_P = (0.398942104, 0.0355566096, 0.00478589999, 0.0001867733, 6.52575007e-06, 2.17074646e-08)
_ERF_Q = (1.0, 0.255791404, 0.029632363, 0.0019852789, 7.96821796e-05, 1.18006453e-06)


def silu(x: mx.array) -> mx.array:
    """x / (1 + exp(-x)); in the fast form within 3e-7 |x|."""
    return _fast_silu(x) if _fast_pays(x) else nn.silu(x)


def gelu(x: mx.array) -> mx.array:
    """x (1 + erf(x / sqrt(2))) / 2, the exact GELU; in the fast form within 2e-6 where |x| <= 8."""
    return _fast_gelu(x) if _fast_pays(x) else nn.gelu(x)


def exp_of_difference(x: mx.array, largest: mx.array) -> mx.array:
    """exp(x - largest) for x <= largest, as softmax needs it; the fast form: within 4e-6, never below exp(-32)."""
    return _compiled_exp(x, largest) if _fast_pays(x) else mx.exp(x - largest)


def softmax(x: mx.array) -> mx.array:
    """Over the last axis, summed in float32; the fast form: within 1e-5 of each weight."""
    if not _fast_pays(x):
        return mx.softmax(x, axis=-1, precise=True)
    weights = exp_of_difference(x, x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _fast_pays(x: mx.array) -> bool:
    return x.size >= _LARGE and x.dtype == mx.float32 and mx.default_device() == mx.cpu and _compiles()


@functools.cache
def _compiles() -> bool:
    """Whether MLX can compile for this CPU, which it does with g++. Elsewhere than on Linux its own are as fast."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return False
    try:
        mx.eval(_compiled_silu(mx.zeros((2,))))
    except RuntimeError:  # a compiler that does not work, or no folder for what it makes
        return False
    return True


def _sigmoidal(x: mx.array, limit: float, p: tuple[float, ...], q: tuple[float, ...]) -> mx.array:
    """x (1/2 + z P(z^2) / Q(z^2)), z being x held within the limit.

    At most eleven operations follow each other: as many as MLX compiles into one kernel.
    """
    z = mx.clip(x, -limit, limit)
    square = z * z
    return 0.5 * x + (x * z) * _polynomial(square, p) / _polynomial(square, q)


def _polynomial(x: mx.array, coefficients: Sequence[float | mx.array]) -> Any:
    """With the constant first, by Estrin's scheme, whose operations depend on each other less than Horner's."""
    if len(coefficients) == 1:
        return coefficients[0]
    pairs = [c + x * d for c, d in zip(coefficients[::2], coefficients[1::2], strict=False)]
    return _polynomial(x * x, [*pairs, *coefficients[len(pairs) * 2 :]])


@mx.compile
def _compiled_silu(x: mx.array) -> mx.array:
    return _sigmoidal(x, _SIGMOID_RANGE, _SIGMOID_P, _SIGMOID_Q)


@mx.compile
def _compiled_gelu(x: mx.array) -> mx.array:
    return _sigmoidal(x, _ERF_RANGE, _ERF_P, _ERF_Q)


@functools.partial(mx.compile, shapeless=True)  # one kernel for all lengths
def _compiled_exp(x: mx.array, largest: mx.array) -> mx.array:
    # exp(x) = exp(x / 16)^16: each squaring doubles the error of what it squares.
    y = _polynomial(mx.maximum((x - largest) * 2.0**-_EXP_SQUARINGS, -_EXP_RANGE), _EXP_P)
    for _ in range(_EXP_SQUARINGS):
        y = y * y
    return y


def _with_gradient_of(exact: Activation, fast: Activation) -> Activation:
    """`fast`, whose gradient is that of `exact`: the derivative of a fit is further off than the fit."""
    function: Any = mx.custom_function(fast)

    @function.vjp
    def gradient(primals: mx.array, cotangents: mx.array, _: mx.array) -> mx.array:
        return mx.vjp(exact, [primals], [cotangents])[1][0]

    return cast(Activation, function)


_fast_silu = _with_gradient_of(nn.silu, _compiled_silu)
_fast_gelu = _with_gradient_of(nn.gelu, _compiled_gelu)
