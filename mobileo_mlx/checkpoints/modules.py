"""What MLX's modules do not offer themselves: parameters by name, submodules by path, building without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """All parameters of a module, frozen ones and running statistics too, by their dotted names."""
    return tree_flatten(module.parameters(), destination={})  # type: ignore[return-value]


def get_submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule with this dotted path; "" is the module itself."""
    for key in path.split(".") if path else ():
        module = module[int(key)] if isinstance(module, list) else module[key]
    return module


def set_submodule(module: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Puts `new` in the place of the submodule with this dotted path.

    Returns:
        the module; `new` itself where the path is "".
    """
    if not path:
        return new
    parent, _, key = path.rpartition(".")
    owner = get_submodule(module, parent)
    if isinstance(owner, list):
        owner[int(key)] = new
    else:
        owner[key] = new
    return module


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Building a network takes random weights; the global random state that a user seeded stays as it was."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)
