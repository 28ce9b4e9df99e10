"""SiLU, GELU, softmax and its exponential, and a scaled residual, in the form that is fast on the backend at hand."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from . import backend
from .cpu import fast_math


def silu(x: mx.array) -> mx.array:
    """x / (1 + exp(-x)); in the fast form within 3e-7 max(|x|, 1)."""
    return fast_math.silu(x) if _fast(x) else nn.silu(x)


def gelu(x: mx.array) -> mx.array:
    """x (1 + erf(x / sqrt(2))) / 2, the exact GELU; in the fast form within 1e-6 max(|x|, 1)."""
    return fast_math.gelu(x) if _fast(x) else nn.gelu(x)


def shifted_exp(x: mx.array, largest: mx.array) -> mx.array:
    """exp(x - largest) for x <= largest, as softmax needs it; in the fast form within 2e-6."""
    return fast_math.decay(largest - x) if _fast(x) else mx.exp(x - largest)


def softmax(x: mx.array) -> mx.array:
    """Over the last axis, summed in float32; the fast form: within 1e-5 of each weight."""
    if not _fast(x):
        return mx.softmax(x, axis=-1, precise=True)
    weights = shifted_exp(x, x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def scaled_residual(scale: mx.array, x: mx.array, y: mx.array) -> mx.array:
    """x + scale y. On a GPU as one kernel: two would write a map and read it again."""
    return x + scale * y if backend.on_cpu() else _scaled_residual(scale, x, y)


@partial(mx.compile, shapeless=True)
def _scaled_residual(scale: mx.array, x: mx.array, y: mx.array) -> mx.array:
    return x + scale * y


def _fast(x: mx.array) -> bool:
    return backend.on_cpu() and fast_math.pays(x)
