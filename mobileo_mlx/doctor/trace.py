"""What the layers of a network take and give while it computes, in its plain form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # by position and by name


@dataclass(frozen=True)
class BlockCall:
    """The last call of a block.

    Attributes:
        name: its path in the network.
        arguments: of the call.
        result: (...), evaluated.
        peak: the largest absolute value that a layer inside of it, or it itself, took or gave in any call.
        peak_layer: the path of that layer.
    """

    name: str
    arguments: Arguments
    result: mx.array
    peak: float
    peak_layer: str


def plain(network: nn.Module) -> nn.Module:
    """The network in the forms of training, which are MLX's own operations, with the statistics of inference."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm):
            layer.eval()
    return network


def trace(network: nn.Module, is_block: Callable[[str], bool], run: Callable[[], Any]) -> list[BlockCall]:
    """What the blocks of a network do while `run` calls it, in the order of their first calls.

    Each layer is evaluated when it is called, so that no more than one is in flight.

    Args:
        is_block: whether the layer of a path is one. No block is inside of another one.
        run: calls the network.
    """
    leaves = {name for name, layer in network.named_modules() if not layer.children()}
    calls: dict[str, BlockCall] = {}
    peaks: dict[str, list[tuple[float, str]]] = {}  # block: largest values and their layers

    def see(name: str, arguments: Arguments, result: Any) -> None:
        block = next((path for path in _parents(name) if is_block(path)), None)
        if block is None or not (name in leaves or name == block):
            return
        seen = [array for array in (*arguments[0], result) if isinstance(array, mx.array) and array.size]
        values = [mx.abs(array).max().astype(mx.float32) for array in seen]
        mx.eval(result, values)
        peaks.setdefault(block, []).extend((float(value), name) for value in values)
        if name == block:
            # A value that is not a number counts as the largest.
            peak, layer = max(peaks[block], key=lambda found: math.inf if math.isnan(found[0]) else found[0])
            calls[block] = BlockCall(block, arguments, result, peak, layer)

    with _watched(network, see):
        run()
    return list(calls.values())


def _parents(name: str) -> list[str]:
    """The path itself and those of all that it is inside of, the network's "" last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


@contextmanager
def _watched(network: nn.Module, see: Callable[[str, Arguments, Any], None]) -> Iterator[None]:
    """Calls `see` with the path, the arguments and the result of every call of a layer of the network.

    Python looks `__call__` up in the class, so it is replaced there, for as long as the context lasts.
    """
    names = {id(layer): name for name, layer in network.named_modules()}
    kinds = {type(layer) for layer in network.modules()}

    def watching(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = call(layer, *args, **kwargs)
            if id(layer) in names:
                see(names[id(layer)], (args, kwargs), result)
            return result

        return run

    own = {kind: vars(kind).get("__call__") for kind in kinds}
    replaced = {kind: watching(kind.__call__) for kind in kinds}
    try:
        for kind, call in replaced.items():
            kind.__call__ = call  # type: ignore[method-assign]
        yield
    finally:
        for kind, before in own.items():
            if before is not None:
                kind.__call__ = before  # type: ignore[method-assign]
            elif "__call__" in vars(kind):
                del kind.__call__
