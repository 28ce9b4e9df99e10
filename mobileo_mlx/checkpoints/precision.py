"""The dtype that each component computes in, by chip; the one place that decides it."""

from __future__ import annotations

import re

import mlx.core as mx

from ..errors import OptionError
from ..ops import backend

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_EARLY_CHIP = re.compile(r"Apple (M[12]|A\d|A1[0-6])\b")  # A17 is the first that computes as M3 does


def parse_dtype(name: str) -> mx.Dtype:
    """float32, float16 or bfloat16.

    Raises:
        OptionError: another name.
    """
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r} is unknown; there are {', '.join(DTYPES)}.")
    return DTYPES[name]


def default_dtype(component: str, stored: mx.Dtype) -> mx.Dtype:
    """The dtype to compute a component in, where none is asked for.

    float32 on a CPU, whose BLAS knows no half precision. float16 on Apple's M1 and M2, which emulate bfloat16, and
    bfloat16 on later ones, whose range nothing can leave. On another GPU the checkpoint's.
    """
    if backend.on_cpu():
        return mx.float32
    chip = backend.chip_name()
    if not chip.startswith("Apple"):
        return stored
    return mx.float16 if _EARLY_CHIP.match(chip) else mx.bfloat16
