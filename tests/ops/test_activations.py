from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobileo_mlx.ops import activations, backend
from mobileo_mlx.ops.cpu import fast_math

X = mx.concatenate([mx.linspace(-25, 25, fast_math.LARGE), mx.array([-1e4, -0.0, 1e-20, 1e4])])


@pytest.fixture
def compiled() -> None:
    if not backend.on_cpu() or not fast_math.compiles():
        pytest.skip("no compiler for the CPU")


def test_fast_silu_is_silu(compiled: None) -> None:
    expected = nn.silu(X)
    y = activations.silu(X)
    assert not mx.array_equal(y, expected)  # the fast one was taken
    assert mx.max(mx.abs(y - expected) / mx.maximum(mx.abs(X), 1)).item() <= 3e-7


def test_fast_gelu_is_the_exact_gelu(compiled: None) -> None:
    expected = nn.gelu(X)
    y = activations.gelu(X)
    assert not mx.array_equal(y, expected)
    assert mx.max(mx.abs(y - expected) / mx.maximum(mx.abs(X), 1)).item() <= 1e-6


def test_fast_exponential(compiled: None) -> None:
    x = mx.concatenate([mx.linspace(-40, 0, fast_math.LARGE), mx.array([-1e30, -float("inf")])])
    expected, y = mx.exp(x), activations.shifted_exp(x + 3, mx.array([3.0]))
    assert not mx.array_equal(y, expected)
    assert mx.abs(y - expected).max().item() <= 2e-6
    assert y[-1].item() == 0
    assert activations.shifted_exp(x, mx.array([0.0]))[fast_math.LARGE - 1].item() == 1


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_fast_gradients(compiled: None, name: str) -> None:
    weights = mx.cos(X)
    exact, fast = getattr(nn, name), getattr(activations, name)
    expected = mx.grad(lambda x: (weights * exact(x)).sum())(X)
    ours = mx.grad(lambda x: (weights * fast(x)).sum())(X)
    assert not mx.array_equal(ours, expected)
    assert mx.abs(ours - expected).max().item() <= 3e-6
    assert mx.grad(lambda x: fast(x).sum())(X)[-3].item() == 0.5  # at 0


@pytest.mark.parametrize("masked", [-1e4, -float("inf")])
def test_gradient_of_the_fast_softmax_where_scores_are_masked(compiled: None, masked: float) -> None:
    scores = 8 * mx.random.normal((fast_math.LARGE // 16, 32), key=mx.random.key(0))
    scores = mx.where(mx.arange(32) < 20, scores, masked)
    weights = mx.cos(mx.arange(32))
    expected = mx.grad(lambda x: (weights * mx.softmax(x, axis=-1, precise=True)).sum())(scores)
    ours = mx.grad(lambda x: (weights * activations.softmax(x)).sum())(scores)
    assert not mx.array_equal(ours, expected)
    assert mx.abs(ours - expected).max().item() <= 1e-5


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_without_a_compiler_they_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fast_math.compiles.cache_clear()
    monkeypatch.setattr(fast_math.shutil, "which", lambda _: None)
    try:
        assert mx.array_equal(getattr(activations, name)(X), getattr(nn, name)(X))
    finally:
        fast_math.compiles.cache_clear()


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_half_precision_and_small_arrays_never_meet_the_compiler(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(fast_math, "compiles")
    for x in (X[:100], X.astype(mx.float16)):
        assert mx.array_equal(getattr(activations, name)(x), getattr(nn, name)(x), equal_nan=True)
