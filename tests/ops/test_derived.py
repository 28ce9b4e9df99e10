from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobileo_mlx.ops import derived as module
from mobileo_mlx.ops.derived import derived

calls: list[int] = []


def doubled(array: mx.array, plus: float = 0) -> mx.array:
    calls.append(1)
    return 2 * array + plus


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    calls.clear()
    yield
    assert not [key for key in module._known if key[0] is doubled]  # all that was kept went with its arrays


def test_it_is_made_once_for_an_array() -> None:
    a, b = mx.array([1.0]), mx.array([1.0])
    assert derived(doubled, a) is derived(doubled, a)
    assert derived(doubled, b) is not derived(doubled, a)
    assert derived(doubled, a, 3.0).item() == 5
    assert derived(doubled, a, 4.0).item() == 6
    assert len(calls) == 4


def test_it_goes_with_the_array() -> None:
    a = mx.array([1.0])
    kept = weakref.ref(derived(doubled, a))
    gc.collect()
    assert kept() is not None
    del a
    gc.collect()
    assert kept() is None


def test_gradients_pass_through_it_and_leave_nothing() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = mx.array([[3.0]])
    value, gradients = nn.value_and_grad(layer, lambda: derived(doubled, layer.weight).sum())()
    assert (value.item(), gradients["weight"].item()) == (6, 2)
    layer.update({"weight": mx.array([[5.0]])})
    assert derived(doubled, layer.weight).item() == 10


def test_a_compiled_function_sees_its_own_arrays() -> None:
    run = mx.compile(lambda a: derived(doubled, a))
    assert [run(mx.array([v])).item() for v in (1.0, 4.0)] == [2, 8]
