"""SiLU, GELU and the exponential of a softmax, fast on a CPU too.

MLX's CPU backend computes exp and erf one element at a time on x86. A rational function has the same values up to
rounding, and one compiled kernel of it runs some five times as fast.
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

# exp(x / 32) for -30 <= x <= 0, a least-squares fit of relative errors.
_EXP_RANGE, _EXP_SQUARINGS = 30.0, 5
_EXP_P = (1.0, 0.999999943, 0.499998824, 0.166657174, 0.0416283579, 0.00824783288, 0.00128051747, 0.000123313529)

Activation = Callable[[mx.array], mx.array]

# Below this many elements the compiler's second, once for each machine, is not worth it.
_LARGE = 2**17

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


def exp_of_negative(x: mx.array) -> mx.array:
    """exp(x) for x <= 0, as softmax needs it; in the fast form within 3e-6, and 1.1e-5 of exp(x) above -30.

    Not for training: the fast form has no gradient below -30.
    """
    return _compiled_exp(x) if _fast_pays(x) else mx.exp(x)


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


def _rational(x: mx.array, limit: float, p: tuple[float, ...], q: tuple[float, ...]) -> mx.array:
    """x P(x^2) / Q(x^2), x held within the limit."""
    x = mx.clip(x, -limit, limit)
    square = x * x
    return x * _polynomial(square, p) / _polynomial(square, q)


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    *rest, last = coefficients
    y = x * last + rest.pop()
    for coefficient in reversed(rest):
        y = y * x + coefficient
    return y


@mx.compile
def _compiled_silu(x: mx.array) -> mx.array:
    return x * (0.5 + _rational(x, _SIGMOID_RANGE, _SIGMOID_P, _SIGMOID_Q))


@mx.compile
def _compiled_gelu(x: mx.array) -> mx.array:
    return x * (0.5 + _rational(x, _ERF_RANGE, _ERF_P, _ERF_Q))


@mx.compile
def _compiled_exp(x: mx.array) -> mx.array:
    # exp(x) = exp(x / 32)^32: each squaring doubles the error of what it squares.
    y = _polynomial(mx.maximum(x, -_EXP_RANGE) * 2.0**-_EXP_SQUARINGS, _EXP_P)
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
