"""Which model computes: what has to be the same wherever the tasks of one run are computed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from .checkpoints.digests import adapter_digest, weights_digest
from .checkpoints.precision import dtypes_text
from .models.mobileo import COMPONENTS

if TYPE_CHECKING:
    from .checkpoints.adapters import Adapter
    from .pipeline import MobileO


def of(model: MobileO) -> dict[str, Any]:
    """What tells one model from another, whichever folder or machine it is on.

    Returns:
        "weights": a digest of the checkpoint's tensors; and where there are any "adapter" (a digest) with
        "adapter_scale", "turbo" (a digest of the few-step adapter that the model brings along), "dtype" and "quantize",
        as they were asked for. Not the precision that a device chooses by itself: its pictures differ by rounding.

    Raises:
        CheckpointError: a file of the model or of an adapter can't be read.
    """
    parts = model.parts
    files = {
        info.file
        for component in COMPONENTS
        if parts.checkpoint.has(component)
        for info in parts.checkpoint.tensors(component).values()
    }
    found: dict[str, Any] = {"weights": weights_digest(files)[:32]}
    if parts.adapters:
        digests = "".join(_digest(adapter) for adapter in parts.adapters)
        found["adapter"] = hashlib.sha256(digests.encode()).hexdigest()[:32]
        found["adapter_scale"] = [adapter.scale for adapter in parts.adapters]
    if parts.turbo is not None:
        found["turbo"] = hashlib.sha256(_digest(parts.turbo).encode()).hexdigest()[:32]
    if (dtypes := dtypes_text(parts.dtypes)) is not None:
        found["dtype"] = dtypes
    if parts.bits:
        found["quantize"] = dict(sorted(parts.bits.items()))
    return found


def _digest(adapter: Adapter) -> str:
    """Of an adapter's tensors, and of the options that it draws with."""
    return adapter_digest(adapter) + (json.dumps(adapter.drawing, sort_keys=True) if adapter.drawing else "")
