"""How adapters change the weights of a component.

Into dense weights an update is merged, W + scale B A. That needs no further layers, and costs nothing when the model
runs. Quantized weights stay as they are and the updates run beside them, because quantizing the sum would lose much of
what is small in it. DoRA multiplies the rows of W + scale B A so that they get the lengths that it was trained to have;
of quantized rows that changes the scales of their groups alone, which is as exact.

Several adapters add up: the result is W plus the difference that each of them makes, times its scale. Only with DoRA
does the order matter, as it does where PEFT merges several: its factors are those of the model alone, and multiply what
was added before, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import NotFiniteError
from ..models.mobileo import MobileOConfig
from ..ops.finite import is_finite
from .adapter_tensors import LowRank
from .modules import get_submodule, set_submodule

if TYPE_CHECKING:
    from .adapters import Adapter


class AdaptedLinear(nn.Module):
    """A quantized linear layer with low-rank updates beside it.

    mlx-lm's `LoRALinear`, which training uses, would do; but importing mlx-lm takes seconds, and drawing does without.

    Args:
        linear: the layer.
        a: (inputs, ranks), of all updates together.
        b: (ranks, outputs), times the scales.
    """

    def __init__(self, linear: nn.QuantizedLinear, a: mx.array, b: mx.array):
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.a) @ self.b


def apply_adapters(adapters: Sequence[Adapter], component: str, module: nn.Module, config: MobileOConfig) -> nn.Module:
    """Changes a loaded component. What is merged becomes float32, so that it is rounded once, by the caller.

    Args:
        adapters: checked against the model; an adapter of scale 0 leaves it as it is, to the bit.
        component: its name.
        module: the network with its weights, dense or quantized.
        config: the model's.

    Returns:
        the module; another one if it was a single layer itself.

    Raises:
        NotFiniteError: a weight that is quantized again is not finite, which quantizing would hide.
    """
    # A layer beside an update of zero takes part in fewer shortcuts, and rounds otherwise.
    adapters = [adapter for adapter in adapters if adapter.scale != 0]
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
            module = _update(module, path, update, adapter.scale, gains.get((number, path)))
    return module


def _gains(adapters: Sequence[Adapter], component: str, module: nn.Module) -> dict[tuple[int, str], mx.array]:
    """What DoRA multiplies the rows of a layer by, (outputs,), by the adapter's number and the layer's path."""
    gains = {}
    for number, adapter in enumerate(adapters):
        for path, update in adapter.low_rank.get(component, {}).items():
            if (magnitudes := update.magnitudes()) is None:
                continue
            layer = get_submodule(module, path)
            a, b = update.factors()
            rows = _dense(layer) + update.scale * (b @ a)
            gains[number, path] = magnitudes / mx.sqrt((rows * rows).sum(axis=1))
            if isinstance(layer, nn.QuantizedLinear):
                mx.eval(gains[number, path])  # so that one dense weight at a time is in memory
    return gains


def _update(module: nn.Module, path: str, update: LowRank, strength: float, gain: mx.array | None) -> nn.Module:
    """Adds `strength` times the difference that an update makes to a layer.

    Args:
        module: that has the layer.
        path: of the layer.
        update: see there.
        strength: the user's scale.
        gain: (outputs,), what the rows are multiplied by afterwards, or None.
    """
    layer = get_submodule(module, path)
    a, b = update.factors()
    b = update.scale * b
    if isinstance(layer, nn.QuantizedLinear | AdaptedLinear):
        if gain is not None:
            _rows_times(layer, 1 + strength * (gain - 1))
            b = gain[:, None] * b
        a, b = a.T, strength * b.T
        if isinstance(layer, AdaptedLinear):
            layer.a, layer.b = mx.concatenate([layer.a, a], axis=1), mx.concatenate([layer.b, b])
            return module
        return set_submodule(module, path, AdaptedLinear(layer, a, b))
    weight = layer.weight.astype(mx.float32)
    if gain is None:
        layer.weight = weight + strength * (b @ a)
    else:
        layer.weight = _between(weight, gain[:, None] * (weight + b @ a), strength)
    return module


def _dense(layer: Any) -> mx.array:
    """The weight of a layer, (outputs, inputs) float32."""
    weight = layer.weight
    if isinstance(layer, nn.QuantizedLinear):
        how: dict[str, Any] = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        weight = mx.dequantize(weight, layer.scales, layer.biases, **how)
    return weight.astype(mx.float32)


def _rows_times(layer: nn.QuantizedLinear | AdaptedLinear, factors: mx.array) -> None:
    """Multiplies the rows of a quantized layer's weight, and of the updates beside it: the same integers stay."""
    if isinstance(layer, AdaptedLinear):
        _rows_times(layer.linear, factors)
        layer.b = layer.b * factors
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
