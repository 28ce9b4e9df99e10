"""How far a result may be from the reference: relative errors, by the dtype that it was computed in."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlx.core as mx

from ..checkpoints import precision
from ..ops import backend
from .trace import BlockCall


@dataclass(frozen=True)
class Budget:
    """The largest relative errors that pass: root mean square, and largest error / largest value."""

    rms: float
    largest: float


# Of a block whose arguments are those of the reference but for their rounding, and of whole networks.
BUDGETS = {
    "float32": (Budget(1e-5, 1e-4), Budget(1e-4, 1e-3)),
    "TF32": (Budget(5e-3, 2e-2), Budget(2e-2, 1e-1)),
    "float16": (Budget(5e-3, 2e-2), Budget(2e-2, 1e-1)),
    "bfloat16": (Budget(4e-2, 1e-1), Budget(1e-1, 4e-1)),
}
_COARSER = ("float32", "TF32", "float16", "bfloat16")  # than those before


@dataclass(frozen=True)
class Comparison:
    """A block or what a whole network makes, with the reference.

    Attributes:
        name: the block's path, or what is made.
        rms, largest: relative errors, as in `Budget`; not finite where the result is not.
        passed: whether they are within the budget.
        peak: the largest absolute value in the reference inside of a block; None of a whole network.
        peak_layer: the path of the layer that takes or gives it.
        stopped_by: the error that stopped it; "" where there is a result.
    """

    name: str
    rms: float
    largest: float
    passed: bool
    peak: float | None = None
    peak_layer: str = ""
    stopped_by: str = ""


def rounding(dtype: mx.Dtype) -> str:
    """The name in `BUDGETS`: that of a dtype, but for float32 on devices where MLX multiplies it in TF32."""
    name = precision.dtype_name(dtype)
    if name != "float32" or os.environ.get("MLX_ENABLE_TF32", "1") == "0" or backend.on_cpu():
        return name
    return "TF32" if backend.backend() == "cuda" or backend.metal_uses_tf32() else name


def coarsest(dtypes: Iterable[mx.Dtype]) -> str:
    """The name in `BUDGETS` for what has gone through networks of several dtypes."""
    return max(map(rounding, dtypes), key=_COARSER.index)


def worst(comparisons: Iterable[Comparison]) -> Comparison:
    """The one with the largest error; one that is no number is larger than all."""
    return max(comparisons, key=lambda one: math.inf if math.isnan(one.rms) else one.rms)


def compare(
    name: str, compute: Callable[[], mx.array], expected: mx.array, budget: Budget, call: BlockCall | None = None
) -> Comparison:
    """Computes a result on the default device and compares it on the CPU.

    Args:
        name: of the comparison.
        compute: the result, of any dtype.
        expected: the reference, float32, of the same shape.
        budget: for it.
        call: of the block in the reference, where it is one.
    """
    peak, layer = (None, "") if call is None else (call.peak, call.peak_layer)
    try:
        result = compute()
        mx.eval(result)
        if result.shape != expected.shape:
            raise ValueError(f"the shape is {result.shape} instead of {expected.shape}")
    except Exception as error:
        # Not narrower: a device may lack a kernel or memory, and says so in errors of all kinds.
        return Comparison(name, math.nan, math.nan, False, peak, layer, f"{type(error).__name__}: {error}")
    with mx.stream(mx.cpu):
        difference = result.astype(mx.float32) - expected
        rms = float(mx.sqrt(mx.square(difference).mean() / mx.square(expected).mean()))
        largest = float(mx.abs(difference).max() / mx.abs(expected).max())
    passed = rms <= budget.rms and largest <= budget.largest  # False where one is not a number
    return Comparison(name, rms, largest, passed, peak, layer)
