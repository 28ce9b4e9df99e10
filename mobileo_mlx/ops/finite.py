"""Whether arrays hold NaN or infinity."""

from __future__ import annotations

import mlx.core as mx

_PIECE = 2**22  # elements


def all_finite(*arrays: mx.array) -> mx.array:
    """One bool, not evaluated: to be evaluated together with the arrays, so that reading it waits for nothing more."""
    flags = [mx.isfinite(array).all() for array in arrays]
    return flags[0] if len(flags) == 1 else mx.stack(flags).all()


def is_finite(tensor: mx.array) -> bool:
    """Whether no element is NaN or infinite; computed here, by pieces: the question takes memory of its own."""
    if not mx.issubdtype(tensor.dtype, mx.floating):
        return True
    elements = tensor.reshape(-1)
    return all(all_finite(elements[i : i + _PIECE]).item() for i in range(0, elements.size, _PIECE))
