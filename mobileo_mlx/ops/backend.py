"""Which backend computes: the only question that the library asks about the device.

Tests and tools that want the forms of another backend replace `backend` here, and reach all that chooses a form.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

Backend = Literal["cpu", "metal", "cuda"]


def backend() -> Backend:
    """That of MLX's default device."""
    if mx.default_device() == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def on_cpu() -> bool:
    """Whether `backend` is a CPU."""
    return backend() == "cpu"


def chip_name() -> str:
    """Such as "Apple M2 Pro"; empty where the backend does not say."""
    try:
        return str(mx.device_info(mx.default_device()).get("device_name", ""))
    except (AttributeError, RuntimeError, ValueError):
        return ""
