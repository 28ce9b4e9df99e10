"""Whether arrays hold NaN or infinity."""

from __future__ import annotations

import mlx.core as mx


def all_finite(*arrays: mx.array) -> mx.array:
    """One bool, not evaluated: to be evaluated together with the arrays, so that reading it waits for nothing more."""
    flags = [mx.isfinite(array).all() for array in arrays]
    return flags[0] if len(flags) == 1 else mx.stack(flags).all()
