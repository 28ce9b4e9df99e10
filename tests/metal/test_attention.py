"""Attention of the networks' shapes is one fused kernel on a GPU in half precision, and right."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx
import pytest
from processes.sitecustomize import device

from mobileo_mlx.ops.attention import attention, biased_attention, masked_attention

from .devices import DTYPES, HALVES, computed, largest_error, normal, on_cpu, rms_error

Attend = Callable[..., mx.array]


def plain(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    return attention(q, k, v, scale)


def causal(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    return masked_attention(q, k, v, scale, "causal")


def unmasked(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    return masked_attention(q, k, v, scale, None)


def text(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    return biased_attention(q, k, v, scale, None)


def padded_text(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    bias = mx.where(mx.arange(k.shape[2]) < k.shape[2] - 9, 0.0, -10000.0).astype(q.dtype)
    return biased_attention(q, k, v, scale, bias[None, None, None])


# Function, heads of queries, of keys, queries, keys, channels of a head.
CASES: dict[str, tuple[Attend, int, int, int, int, int]] = {
    "tower": (plain, 24, 24, 256, 256, 32),
    "question": (causal, 14, 2, 300, 300, 64),
    "second question": (causal, 14, 2, 30, 330, 64),
    "token": (unmasked, 14, 2, 1, 301, 64),
    "edit": (text, 16, 16, 256, 300, 72),
    "padded prompt": (padded_text, 16, 16, 256, 77, 72),
    "question, 1.5B": (causal, 12, 2, 300, 300, 128),
    "token, 1.5B": (unmasked, 12, 2, 1, 301, 128),
}


def inputs(case: str) -> tuple[mx.array, mx.array, mx.array]:
    _, heads, kv_heads, queries, keys, width = CASES[case]
    return (
        normal(2, heads, queries, width, seed=1),
        normal(2, kv_heads, keys, width, seed=2),
        normal(2, kv_heads, keys, width, seed=3),
    )


@functools.lru_cache(maxsize=1)
def expected(case: str) -> mx.array:
    return on_cpu(lambda: CASES[case][0](*inputs(case), CASES[case][-1] ** -0.5))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_attention(case: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = expected(case)
    arrays = [x.astype(DTYPES[dtype]) for x in inputs(case)]
    if dtype in HALVES and device() == "gpu":
        fused = functools.partial(
            mx.fast.scaled_dot_product_attention, force_fused=True
        )  # an error where there is none
        monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", fused)
    (y,) = computed(lambda: CASES[case][0](*arrays, CASES[case][-1] ** -0.5))
    assert y.dtype == DTYPES[dtype]
    if dtype == "float32":
        assert largest_error(y, reference) <= 1e-5
    else:
        assert rms_error(y, reference) <= 4 * mx.finfo(DTYPES[dtype]).eps / 2
