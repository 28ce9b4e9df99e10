"""Why the weights of a component make values that are not finite. Asked after a failure only: everything is read again.

One tensor at a time is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from ..ops.finite import is_finite
from .modules import named_parameters
from .tensor_files import TensorInfo, read_tensors

if TYPE_CHECKING:
    from .adapters import Adapter
    from .checkpoint import Checkpoint

# An adapter, or training, that makes the largest weight so many times as large is at fault: what is meant to be
# added to weights is smaller than they are.
_LARGER = 100


def stored_fault(checkpoint: Checkpoint, component: str) -> str:
    """The first tensor of a component in the checkpoint that is not finite, and the remedy; "" where all are."""
    infos = checkpoint.tensors(component)
    if name := _first_not_finite(infos):
        return f"{infos[name].key} in '{infos[name].file}' holds NaN or infinity; get the model again"
    return ""


def adapter_fault(adapters: Sequence[Adapter], component: str) -> str:
    """The same for what adapters change of a component."""
    for adapter in adapters:
        infos = {info.key: info for update in adapter.low_rank.get(component, {}).values() for info in update.tensors}
        infos |= adapter.full.get(component, {}) | adapter.trained.get(component, {})
        if name := _first_not_finite(infos):
            return f"the adapter '{adapter.name}' holds NaN or infinity in {infos[name].key}; get it or train it again"
    return ""


def size_fault(adapters: Sequence[Adapter], component: str, module: nn.Module, plain: nn.Module) -> str:
    """Whether a component's weights are far larger than those of the checkpoint, why, and the remedy; "" if not.

    Args:
        adapters: that were applied.
        component: its name.
        module: with the weights that compute.
        plain: with those of the checkpoint, in the same dtype.
    """
    with_changes, without = largest(module), largest(plain)
    if with_changes <= _LARGER * without or not math.isfinite(without):
        return ""
    found = f"makes weights as large as {with_changes:.2g}, where the model's are {without:.2g} at most"
    changing = [
        f"'{adapter.name}' at scale {adapter.scale:g}" for adapter in adapters if component in adapter.components
    ]
    if not changing:
        return f"training {found}; lower the learning rate"
    return (
        f"the adapter {' with '.join(changing)} {found}; choose a smaller --adapter-scale, or get it or train it again"
    )


def range_fault(adapters: Sequence[Adapter], component: str, what: str, dtype: str) -> str:
    """That weights or activations leave the range of a dtype, with what may help.

    Args:
        adapters: that were applied.
        component: whose they are.
        what: "weights" or "activations".
        dtype: its name.
    """
    wider = {"float16": "bfloat16", "bfloat16": "float32"}.get(dtype)
    remedies = [f"choose --dtype {component}={wider}"] if wider else []
    scales = [adapter.scale for adapter in adapters if component in adapter.components]
    if scales:
        remedies.append(f"choose a smaller --adapter-scale than {max(scales, key=abs):g}")
    return f"its {what} leave the range of {dtype}; {' or '.join(remedies) or 'get the model again'}"


def largest(module: nn.Module) -> float:
    """The largest absolute value of a module's weights; infinity where one is NaN or infinite."""
    tensors = named_parameters(module)
    found = 0.0
    for name in list(tensors):
        tensor = tensors.pop(name)
        if mx.issubdtype(tensor.dtype, mx.floating) and tensor.size:
            value = float(mx.abs(tensor).max())
            if not (math.isfinite(value) and is_finite(tensor)):  # a maximum may pass over NaN
                return math.inf
            found = max(found, value)
    return found


def _first_not_finite(infos: Mapping[str, TensorInfo]) -> str:
    """The name of the first such tensor; "" where there is none."""
    tensors = read_tensors(infos)
    return next((name for name in list(tensors) if not is_finite(tensors.pop(name))), "")
