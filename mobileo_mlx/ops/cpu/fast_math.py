"""SiLU and GELU with their gradients, and exp(-x), as powers of polynomials, for MLX's CPU backend.

On x86 that one computes exp and erf one element at a time. A power of a polynomial has the same values up to rounding,
and one compiled kernel of it runs some twenty times as fast.
"""

from __future__ import annotations

import functools
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

# Below this many elements the compiler's second, once for each machine, is not worth it.
LARGE = 2**15

# A polynomial in x >= 0 whose eighth power is exp(x): a fit reweighted to even errors of exp(-x), good to 6e-9. With no
# coefficient below 0 it grows to infinity, where exp(-x) is 0.
_EXP = (1.0, 0.124999986, 0.00781257114, 0.000325411032, 1.02420152e-05, 2.34422424e-07, 7.77044095e-09)

# A product of quadratics k (x^2 + b |x| + c), each (b, c), `k` being that of the first and 1 of the others. Its eighth
# power is 1 / Phi(-|x|), Phi being the normal distribution: a fit reweighted to even errors of |x| Phi(-|x|).
_GELU_SCALE = 3.13593926e-06
_GELU_FACTORS = (
    (7.43605288, 17.2480615),
    (1.15698359, 18.3142824),
    (-4.13673107, 25.5654448),
    (-10.0225196, 43.0603518),
)

# Likewise the fourth power is exp(|x|), even in the error of |x| / (1 + exp(|x|)).
_SILU_SCALE = 1.1980507e-09
_SILU_FACTORS = (
    (15.6172621, 70.5830527),
    (9.89849381, 108.110501),
    (-2.60078037, 215.188736),
    (-25.7892719, 508.319724),
)


def pays(x: mx.array) -> bool:
    """Whether these forms are for an array on a CPU."""
    return x.size >= LARGE and x.dtype == mx.float32 and compiles()


@functools.cache
def compiles() -> bool:
    """Whether MLX can compile for this CPU, which it does with g++. Elsewhere than on Linux its own are as fast."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return False
    try:
        mx.eval(_compiled_silu(mx.zeros((2,))))
    except RuntimeError:  # a compiler that does not work, or no folder for what it makes
        return False
    return True


def _even_polynomial(x: mx.array, size: mx.array, scale: float, factors: Sequence[tuple[float, float]]) -> mx.array:
    """A polynomial of degree 8 in `size` = |x|, as the product of four quadratics.

    It grows beyond all bounds, so that what is divided by a power of it needs no clipping, which NaN makes expensive.
    """
    square = x * x
    (b, c), *others = factors
    first = scale * square + scale * c + (scale * b) * size
    second, third, fourth = ((square + c) + b * size for b, c in others)
    return (first * second) * (third * fourth)


def _polynomial(x: mx.array, coefficients: Sequence[float | mx.array]) -> Any:
    """With the constant first, by Estrin's scheme, whose operations depend on each other less than Horner's."""
    if len(coefficients) == 1:
        return coefficients[0]
    pairs = [c + x * d for c, d in zip(coefficients[::2], coefficients[1::2], strict=False)]
    return _polynomial(x * x, [*pairs, *coefficients[len(pairs) * 2 :]])


# At most eleven operations follow each other in these two: as many as MLX compiles into one kernel.


@mx.compile
def _compiled_silu(x: mx.array) -> mx.array:
    # x / (1 + exp(-x)) = max(x, 0) - |x| / (1 + exp(|x|))
    size = mx.abs(x)
    return 0.5 * (x + size) - size / (1 + _exponential(x, size))


@mx.compile
def _compiled_gelu(x: mx.array) -> mx.array:
    # x Phi(x) = max(x, 0) - |x| Phi(-|x|)
    size = mx.abs(x)
    return 0.5 * (x + size) - size / _inverse_tail(x, size)


def _exponential(x: mx.array, size: mx.array) -> mx.array:
    """exp(|x|); `size` is |x|."""
    y = _even_polynomial(x, size, _SILU_SCALE, _SILU_FACTORS)
    y = y * y
    return y * y


def _inverse_tail(x: mx.array, size: mx.array) -> mx.array:
    """1 / Phi(-|x|); `size` is |x|."""
    y = _even_polynomial(x, size, _GELU_SCALE, _GELU_FACTORS)
    y = y * y
    y = y * y
    return y * y


@mx.compile  # for each shape: without shapes MLX makes several kernels of it
def _compiled_decay(x: mx.array) -> mx.array:
    """exp(-x) for x >= 0."""
    y = _polynomial(x, _EXP)
    y = y * y
    y = y * y
    return 1 / (y * y)


# The gradients, each in several kernels, as no more operations are compiled into one. sign(x) (1/2 - t) + 1/2 is
# 1 - t for x > 0 and t for x < 0: `mx.where` would have no vector instructions.


@mx.compile
def _logistic_tail(x: mx.array) -> mx.array:
    """1 / (1 + exp(|x|))."""
    return 1 / (1 + _exponential(x, mx.abs(x)))


@mx.compile
def _silu_gradient(x: mx.array, tail: mx.array, cotangent: mx.array) -> mx.array:
    sigmoid = mx.sign(x) * (0.5 - tail) + 0.5
    return cotangent * sigmoid * (1 + x * (1 - sigmoid))


@mx.compile
def _normal_tail(x: mx.array) -> mx.array:
    """Phi(-|x|)."""
    return 1 / _inverse_tail(x, mx.abs(x))


@mx.compile
def _gelu_gradient(x: mx.array, tail: mx.array, bell: mx.array, cotangent: mx.array) -> mx.array:
    return cotangent * (mx.sign(x) * (0.5 - tail) + 0.5 + (1 / math.sqrt(2 * math.pi)) * x * bell)


silu: Any = mx.custom_function(_compiled_silu)
gelu: Any = mx.custom_function(_compiled_gelu)
decay: Any = mx.custom_function(_compiled_decay)


@decay.vjp
def _(x: mx.array, cotangent: mx.array, weight: mx.array) -> mx.array:
    # Not that of the polynomial, which has no number where its power is infinite.
    return -cotangent * weight


@silu.vjp
def _(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    return _silu_gradient(x, _logistic_tail(x), cotangent)


@gelu.vjp
def _(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    return _gelu_gradient(x, _normal_tail(x), decay(0.5 * x * x), cotangent)
