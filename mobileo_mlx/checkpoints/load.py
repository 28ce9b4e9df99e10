"""From a checkpoint to a network that computes: weights, quantized or not, an adapter, and the dtype."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from ..errors import OptionError
from ..ops import backend
from .modules import preserve_rng_state
from .quantize import QuantizeSpec
from .quantize import quantize as quantize_module

if TYPE_CHECKING:
    from .adapters import Adapter
    from .checkpoint import Checkpoint

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_EARLY_CHIP = re.compile(r"Apple (M[12]|A\d|A1[0-6])\b")  # A17 is the first that computes as M3 does


@preserve_rng_state()
def load_component(
    checkpoint: Checkpoint,
    name: str,
    *,
    dtype: mx.Dtype | None = None,
    quantize: QuantizeSpec | None = None,
    adapter: Adapter | None = None,
) -> nn.Module:
    """Builds a component with its weights, in evaluation mode.

    Weights are read from disk when they are first used; only those that are quantized are read here, layer by layer,
    so that little more than the quantized weights is ever in memory.

    Args:
        checkpoint: where the weights are stored.
        name: one of `mobileo_mlx.models.mobileo.COMPONENTS`.
        dtype: of the floating-point weights; by default `default_dtype` of what is stored.
        quantize: bits for the linear layers and embeddings of a component that is not stored quantized.
        adapter: applied last, so that it does the same to weights quantized here as to those stored quantized.

    Raises:
        CheckpointError: see `Checkpoint.network`.
        OptionError: the component is stored quantized with other bits.
    """
    stored = checkpoint.quantization.get(name)
    if stored is not None and quantize is not None and quantize != stored:
        raise OptionError(
            f"{name} of '{checkpoint.path}' is quantized to {stored.bits} bits already; start from the original."
        )
    module = checkpoint.network(name)
    if quantize is not None and stored is None:
        module = quantize_module(module, quantize)
    if adapter is not None:
        module = adapter.apply(name, module, checkpoint.config)
    module.set_dtype(dtype or default_dtype(checkpoint.stored_dtype(name)))
    return module.eval()


def parse_dtype(name: str) -> mx.Dtype:
    """float32, float16 or bfloat16.

    Raises:
        OptionError: another name.
    """
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r} is unknown; there are {', '.join(DTYPES)}.")
    return DTYPES[name]


def default_dtype(stored: mx.Dtype) -> mx.Dtype:
    """The dtype to compute in, where none is asked for.

    float32 on a CPU, whose BLAS knows no half precision. float16 on Apple's M1 and M2, which emulate bfloat16, and
    bfloat16 on later ones, whose range nothing can leave. On another GPU the checkpoint's.
    """
    if backend.on_cpu():
        return mx.float32
    chip = backend.chip_name()
    if not chip.startswith("Apple"):
        return stored
    return mx.float16 if _EARLY_CHIP.match(chip) else mx.bfloat16
