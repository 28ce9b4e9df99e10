"""What is made of weights, made once: flipped, summed or folded copies that no call should make again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import mlx.core as mx

T = TypeVar("T")

_known: dict[tuple[Hashable, ...], tuple[Any, list[weakref.ref[mx.array]]]] = {}


def derived(make: Callable[..., T], *arguments: Any) -> T:
    """make(*arguments), made once for these very arrays and kept for as long as all of them live.

    A network whose weights are replaced, as training does it, has other arrays; so it gets what is made of those. Not
    noticed is an array that is changed in place (`weight[0] = 1`). Nothing is kept in the network: there is no
    parameter more, and freeing its weights frees what was made of them.

    Args:
        make: a function of a module, not one that is defined anew for each call.
        arguments: arrays, and what else can be hashed.
    """
    key = (make, *(id(a) if isinstance(a, mx.array) else a for a in arguments))
    found = _known.get(key)
    if found is None:

        def forget(_: object, pop: Callable[..., Any] = _known.pop) -> None:
            pop(key, None)

        refs = [weakref.ref(a, forget) for a in arguments if isinstance(a, mx.array)]
        made = make(*arguments)
        with contextlib.suppress(ValueError):  # which MLX raises while a function is traced
            mx.async_eval(made)  # the next call may come from another thread
        _known[key] = found = (made, refs)
    return found[0]  # type: ignore[no-any-return]
