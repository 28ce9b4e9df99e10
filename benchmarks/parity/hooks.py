"""Intermediate values: a submodule is swapped for a stand-in that records what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn


class OutputRecorder:
    """Stands where a submodule was, does the same, and keeps the last result in `output`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.inner(*args, **kwargs)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@contextmanager
def taps(module: nn.Module, paths: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Records the outputs of submodules while the block runs.

    Args:
        module: the network.
        paths: name to the submodule's path, such as `network.4`; the path of a list means its last element. Those
            that do not exist are left out.

    Yields:
        a dictionary that has the outputs by name once the block has ended.
    """
    seen: dict[str, Any] = {}
    swapped: list[tuple[Any, Any, OutputRecorder]] = []
    recorders: dict[str, OutputRecorder] = {}
    try:
        for name, path in paths.items():
            try:
                owner, key = _place(module, path)
            except (KeyError, IndexError, ValueError):
                continue
            recorders[name] = OutputRecorder(owner[key])
            swapped.append((owner, key, recorders[name]))
            owner[key] = recorders[name]
        yield seen
        seen |= {name: tap.output for name, tap in recorders.items() if tap.output is not None}
    finally:
        for owner, key, tap in reversed(swapped):
            owner[key] = tap.inner


def _place(module: nn.Module, path: str) -> tuple[Any, Any]:
    """The container of a submodule and its key there."""
    owner: Any = None
    key: Any = None
    target: Any = module
    for part in path.split("."):
        owner = _untapped(target)
        key = int(part) if isinstance(owner, list) else part
        target = owner[key]
    if isinstance(target, list):
        owner, key = target, len(target) - 1
        target = owner[key]
    return owner, key


def _untapped(target: Any) -> Any:
    while isinstance(target, OutputRecorder):
        target = target.inner
    return target
