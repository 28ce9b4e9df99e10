"""Values that are not finite: found early, and explained in one sentence.

Networks do not look for them. What a phase has computed is looked at when it is evaluated anyway; and only after a
failure are weights read again, to tell causes apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import mlx.core as mx

from .checkpoints.precision import dtype_name
from .checkpoints.weights_fault import adapter_fault, largest, range_fault, size_fault, stored_fault
from .errors import NotFiniteError
from .ops.finite import all_finite

if TYPE_CHECKING:
    import mlx.nn as nn

    from .models.sana import SanaTransformer
    from .parts import Parts

Item = TypeVar("Item")


def check_finite(parts: Parts, component: str, *arrays: mx.array, other_cause: Callable[[], str] = lambda: "") -> None:
    """Evaluates what a component has given.

    Args:
        component: its name.
        arrays: what it has given.
        other_cause: asked first after a failure: what is at fault instead of the weights, and the remedy, or "".

    Raises:
        NotFiniteError: there is NaN or infinity in it; with the cause.
    """
    finite = all_finite(*arrays)
    mx.eval(finite, *arrays)
    if not finite.item():
        raise explain(parts, NotFiniteError(component, other_cause()))


def explained(parts: Parts, items: Iterator[Item], *, turbo: bool = False) -> Iterator[Item]:
    """The same items; a NotFiniteError that they raise gets its cause. `turbo`: whether `parts.turbo` takes part."""
    try:
        yield from items
    except NotFiniteError as error:
        raise explain(parts, error, turbo=turbo) from error


def explain(parts: Parts, error: NotFiniteError, *, turbo: bool = False) -> NotFiniteError:
    """The same error with its cause, the dtype and the remedy, as far as the weights show them."""
    if error.cause:
        return error
    component = "llm" if error.component == "lm_head" and parts.checkpoint.tied else error.component
    plain = parts.load(component, adapted=False)
    dtype = dtype_name(parts.dtype(component))
    return NotFiniteError(component, _cause(parts, component, plain, dtype, turbo), dtype)


def _cause(parts: Parts, component: str, plain: nn.Module, dtype: str, turbo: bool) -> str:
    own = parts.turbo if turbo and component == "dit" else None
    adapters = parts.adapters if own is None else (*parts.adapters, own)
    if fault := stored_fault(parts.checkpoint, component) or adapter_fault(adapters, component):
        return fault
    # Networks that are kept may have been trained.
    module = parts[component] if component in parts.loaded else parts.load(component)
    if own is not None:
        module = parts.with_turbo(cast("SanaTransformer", module))
    if fault := size_fault(adapters, component, module, plain):
        return fault
    what = "weights" if math.isinf(largest(module)) else "activations"
    return range_fault(adapters, component, what, dtype)
