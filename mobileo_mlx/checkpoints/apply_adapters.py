"""How adapters change the weights of a component.

Into dense weights an update is merged, W + scale B A. That needs no further layers, and costs nothing when the model
runs. Quantized weights stay as they are and the updates run beside them, because quantizing the sum would lose much of
what is small in it. DoRA multiplies the rows of W + scale B A so that they get the lengths that it was trained to have;
of quantized rows that changes the scales of their groups alone, which is as exact.

The updates of a few-step adapter, one that says how to draw, run beside dense weights, too: a model that brings one
along draws with it and without it in turn (`with_updates`), and what is merged could not be taken out again to the bit.
In a pass of the DiT that is some 1.5 rank / width more multiplications.

Several adapters add up: the result is W plus the difference that each of them makes, times its scale. Only with DoRA
does the order matter, as it does where PEFT merges several: its factors are those of the model alone, and multiply what
was added before, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import NotFiniteError
from ..models.layers import AdaptedLinear, dense_weight
from ..models.mobileo import MobileOConfig
from ..ops.finite import is_finite
from .adapter_tensors import LowRank
from .modules import get_submodule, set_submodule

if TYPE_CHECKING:
    from .adapters import Adapter

Updates = dict[str, tuple[mx.array, mx.array]]  # by a layer's path (inputs, rank), and (rank, outputs) times the scale


def apply_adapters(
    adapters: Sequence[Adapter], component: str, module: nn.Module, config: MobileOConfig, *, merge: bool = False
) -> nn.Module:
    """Changes a loaded component. What is merged becomes float32, so that it is rounded once, by the caller.

    Args:
        adapters: checked against the model; an adapter of scale 0 leaves it as it is, to the bit.
        component: its name.
        module: the network with its weights, dense or quantized.
        config: the model's.
        merge: whether few-step adapters are merged into dense weights, as all others are: for what is written.

    Returns:
        the module; another one if it was a single layer itself.

    Raises:
        NotFiniteError: a weight that is quantized again is not finite, which quantizing would hide.
    """
    # A layer beside an update of zero takes part in fewer shortcuts, and rounds otherwise.
    adapters = [adapter for adapter in adapters if adapter.scale != 0]
    if not merge:
        adapters.sort(key=_runs_beside)  # last, as those are that `with_updates` adds
    replaced: dict[str, list[tuple[Adapter, mx.array]]] = {}
    for adapter in adapters:
        for name, array in adapter.replacements(component, config).items():
            replaced.setdefault(name, []).append((adapter, array))
    gains = _gains(adapters, component, module)
    for name, changes in replaced.items():
        if not _replace(module, name, [(adapter.scale, array) for adapter, array in changes]):
            names = " or ".join(f"'{adapter.name}'" for adapter, _ in changes)
            raise NotFiniteError(
                component, f"the adapter {names} holds NaN or infinity in {name}; get it or train it again"
            )
    for number, adapter in enumerate(adapters):
        for path, update in adapter.low_rank.get(component, {}).items():
            beside = _runs_beside(adapter) and not merge
            module = _update(module, path, update, adapter.scale, gains.get((number, path)), beside=beside)
    return module


def beside_updates(adapter: Adapter, component: str, dtype: mx.Dtype) -> Updates:
    """The low-rank updates of an adapter without DoRA as `AdaptedLinear` has them, evaluated.

    Args:
        adapter: checked against the model.
        component: its name.
        dtype: that it computes in.
    """
    updates = {}
    for path, update in adapter.low_rank.get(component, {}).items():
        a, b = _beside(update, adapter.scale)
        updates[path] = (a.astype(dtype), b.astype(dtype))
    mx.eval(updates)
    return updates


def with_updates(module: nn.Module, updates: Updates) -> nn.Module:
    """A network with updates beside its layers, which shares all arrays with the one that it is made of.

    That one stays as it is, and computes what it did before. Only the modules are others, a few hundred small objects.
    """
    twin = _twin(module)
    for path, (a, b) in updates.items():
        twin = _add_beside(twin, path, a, b)
    return twin


def _twin(value: Any) -> Any:
    """A copy of a module and all that are in it, but of no array."""
    if isinstance(value, nn.Module):
        module = copy.copy(value)
        for name, own in module.items():
            dict.__setitem__(module, name, _twin(own))
        return module
    return [_twin(one) for one in value] if isinstance(value, list) else value


def _runs_beside(adapter: Adapter) -> bool:
    return bool(adapter.drawing) and adapter.config is not None and not adapter.config.dora


def _beside(update: LowRank, strength: float) -> tuple[mx.array, mx.array]:
    a, b = update.factors()
    return a.T, strength * (update.scale * b).T


def _add_beside(module: nn.Module, path: str, a: mx.array, b: mx.array) -> nn.Module:
    layer: Any = get_submodule(module, path)
    if isinstance(layer, AdaptedLinear):
        layer.a, layer.b = mx.concatenate([layer.a, a], axis=1), mx.concatenate([layer.b, b])
        return module
    return set_submodule(module, path, AdaptedLinear(layer, a, b))


def _gains(adapters: Sequence[Adapter], component: str, module: nn.Module) -> dict[tuple[int, str], mx.array]:
    """What DoRA multiplies the rows of a layer by, (outputs,), by the adapter's number and the layer's path."""
    gains = {}
    for number, adapter in enumerate(adapters):
        for path, update in adapter.low_rank.get(component, {}).items():
            if (magnitudes := update.magnitudes()) is None:
                continue
            layer = get_submodule(module, path)
            a, b = update.factors()
            weight = dense_weight(layer)
            assert weight is not None  # `Adapter.check` lets no other layer through
            rows = weight + update.scale * (b @ a)
            gains[number, path] = magnitudes / mx.sqrt((rows * rows).sum(axis=1))
            if isinstance(layer, nn.QuantizedLinear):
                mx.eval(gains[number, path])  # so that one dense weight at a time is in memory
    return gains


def _update(
    module: nn.Module, path: str, update: LowRank, strength: float, gain: mx.array | None, *, beside: bool = False
) -> nn.Module:
    """Adds `strength` times the difference that an update makes to a layer.

    Args:
        module: that has the layer.
        path: of the layer.
        update: see there.
        strength: the user's scale.
        gain: (outputs,), what the rows are multiplied by afterwards, or None.
        beside: whether it runs beside a dense weight, too.
    """
    layer = get_submodule(module, path)
    if beside or isinstance(layer, nn.QuantizedLinear | AdaptedLinear):
        a, b = _beside(update, strength)
        if gain is not None:
            _rows_times(layer, 1 + strength * (gain - 1))
            b = b * gain
        return _add_beside(module, path, a, b)
    a, b = update.factors()
    b = update.scale * b
    weight = layer.weight.astype(mx.float32)
    if gain is None:
        layer.weight = weight + strength * (b @ a)
    else:
        layer.weight = _between(weight, gain[:, None] * (weight + b @ a), strength)
    return module


def _rows_times(layer: nn.Module, factors: mx.array) -> None:
    """Multiplies the rows of a layer's weight, and of the updates beside it; of a quantized one the integers stay."""
    if isinstance(layer, AdaptedLinear):
        _rows_times(layer.linear, factors)
        layer.b = layer.b * factors
    elif isinstance(layer, nn.Linear):
        layer.weight = factors[:, None] * layer.weight
    else:
        for name in ("scales", "biases"):
            layer[name] = factors[:, None] * layer[name]


def _replace(module: nn.Module, name: str, changes: Sequence[tuple[float, mx.array]]) -> bool:
    """Moves a parameter towards others, by a scale each; a quantized weight is quantized again, as it was.

    Returns:
        whether what was quantized is finite; True where nothing was.
    """
    path, _, leaf = name.rpartition(".")
    layer = get_submodule(module, path)
    old = layer[leaf]
    if leaf != "weight" or not isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        layer[leaf] = _moved(old, changes)
        return True
    how: dict[str, Any] = {"group_size": layer.group_size, "bits": layer.bits}
    if len(changes) > 1 or changes[0][0] != 1:
        old = mx.dequantize(old, layer.scales, layer.biases, **how)
    dense = _moved(old, changes)
    finite = is_finite(dense)
    layer.weight, layer.scales, layer.biases = mx.quantize(dense, **how)
    del dense
    mx.eval(layer.parameters())  # so that one dense weight at a time is in memory
    return finite


def _moved(old: mx.array, changes: Sequence[tuple[float, mx.array]]) -> mx.array:
    """`old` plus the scaled differences to each of the others."""
    if len(changes) == 1:
        return _between(old, changes[0][1], changes[0][0])
    old = old.astype(mx.float32)
    return sum((scale * (new.astype(mx.float32) - old) for scale, new in changes), start=old)


def _between(old: mx.array, new: mx.array, scale: float) -> mx.array:
    if scale == 1:
        return new
    old = old.astype(mx.float32)
    return old + scale * (new.astype(mx.float32) - old)
