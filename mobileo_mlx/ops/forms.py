"""Which of several equivalent forms an operation takes.

Forms differ in time and memory and in nothing else but rounding. Each operation has a default for the backend and the
chip, as far as sources tell; `mobileo-mlx doctor --tune` measures, and what was faster on this device and with this MLX
is taken from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx

from . import device_settings

# The names of the forms, by operation.
FORMS: dict[str, tuple[str, ...]] = {
    # A network on a whole map, or on bands of rows; see `bands`.
    "map": ("whole", "bands", "large bands"),
    # A dense convolution of stride 1: MLX's own, the same with weights flipped twice, one matrix product over patches,
    # a product for each tap, or our Winograd; see `conv`.
    "conv3x3": ("plain", "flipped", "unfolded", "taps", "winograd"),
    # The same of an image that is made twice as large.
    "upsample": ("plain", "unfolded", "winograd"),
    # A product with quantized weights as they are, or dequantized first; see `checkpoints.quantize`.
    "quantized": ("packed", "dense"),
    # A block of the diffusion transformer as it is, or by `mx.compile`; see `models.sana_prepared`.
    "dit_block": ("plain", "compiled"),
}

_asked: ContextVar[list[tuple[str, str, str]] | None] = ContextVar("asked", default=None)
_forced: ContextVar[Mapping[str, str]] = ContextVar("forced", default={})  # noqa: B039 - never changed in place


def chosen(operation: str, shape: str, default: str) -> str:
    """The form of an operation: the one that is forced, else what was measured here for this shape, else the default.

    Args:
        operation: one of `FORMS`.
        shape: of what is computed, with its dtype, in the words of the caller.
        default: for this backend and chip.
    """
    if (asked := _asked.get()) is not None:
        asked.append((operation, shape, default))
    forced = _forced.get().get(operation)
    if forced is not None:
        return forced
    form = device_settings.current().forms.get(key(operation, shape))
    return form if form in FORMS[operation] else default


def key(operation: str, shape: str) -> str:
    """The name of a choice in `device_settings`."""
    return f"{operation} {shape}"


@contextmanager
def forced(forms: Mapping[str, str]) -> Iterator[None]:
    """Makes operations take a form, whatever their shape, in this thread: for tests, verifying and tuning.

    Args:
        forms: a name of `FORMS` for each operation.

    Raises:
        ValueError: there is no such operation or form.
    """
    for operation, form in forms.items():
        if form not in FORMS.get(operation, ()):
            raise ValueError(f"there is no form {form!r} of {operation!r}")
    token = _forced.set({**_forced.get(), **forms})
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def recorded() -> Iterator[list[tuple[str, str, str]]]:
    """Yields a list of the arguments of every `chosen` inside, in this thread: what there is to tune."""
    asked: list[tuple[str, str, str]] = []
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def dtype_name(dtype: mx.Dtype) -> str:
    """Such as "float16"."""
    return str(dtype).rpartition(".")[2]


def about(count: int) -> int:
    """The nearest power of two: shapes that differ by less share one choice."""
    return 1 << round(math.log2(count))
