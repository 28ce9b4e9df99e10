"""Which backend computes: the only question that the library asks about the device.

Tests and tools that want the forms of another backend replace `backend` here, and reach all that chooses a form.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from typing import Any, Literal

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
    return str(device_info().get("device_name", ""))


def stated_memory() -> int:
    """Bytes that the device can compute with; 0 where the backend does not say."""
    info = device_info()
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or 0)


def memory() -> int:
    """`stated_memory`, or that of the smallest Mac."""
    return stated_memory() or 2**33 * 2 // 3


@functools.cache
def metal_uses_tf32() -> bool:
    """Whether Metal rounds the factors of float32 products to TF32, of 10 bits.

    It does where the GPU has matrix units that MLX uses (`is_nax_available` of its Metal backend: M5 and later from
    macOS 26.2 on, of phones' chips a generation later), unless the environment has MLX_ENABLE_TF32=0.
    """
    name = str(device_info().get("architecture", ""))  # such as applegpu_g17s
    if os.environ.get("MLX_ENABLE_TF32", "1") == "0" or not name.startswith("applegpu_g"):
        return False
    digits, kind = name.removeprefix("applegpu_g")[:-1], name[-1]
    system = [int(part) for part in platform.mac_ver()[0].split(".") if part.isdecimal()]
    return digits.isdecimal() and int(digits) >= (18 if kind == "p" else 17) and system >= [26, 2]


def device_info() -> dict[str, str | int]:
    """What MLX says of its default device; nothing where it does not."""
    return _asked(getattr(mx, "device_info", None), str(mx.default_device()))


@functools.lru_cache(maxsize=8)
def _asked(ask: Callable[[mx.Device], Any] | None, device: str) -> dict[str, str | int]:
    """What the default device says of itself. It is asked once: CUDA's would ask the driver for memory each time."""
    try:
        return {} if ask is None else dict(ask(mx.default_device()))
    except (AttributeError, RuntimeError, ValueError):
        return {}
