"""From a checkpoint to a network that computes: weights, quantized or not, adapters, and the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from ..errors import NotFiniteError, OptionError
from . import precision
from .apply_adapters import apply_adapters
from .modules import preserve_rng_state
from .quantize import QuantizeSpec
from .quantize import quantize as quantize_module
from .weights_fault import stored_fault

if TYPE_CHECKING:
    from .adapters import Adapter
    from .checkpoint import Checkpoint


@preserve_rng_state()
def load_component(
    checkpoint: Checkpoint,
    name: str,
    *,
    dtype: mx.Dtype | None = None,
    quantize: QuantizeSpec | None = None,
    adapters: Sequence[Adapter] = (),
    merge: bool = False,
) -> nn.Module:
    """Builds a component with its weights, in evaluation mode.

    Weights are read from disk when they are first used; only those that are quantized are read here, layer by layer,
    so that little more than the quantized weights is ever in memory.

    Args:
        checkpoint: where the weights are stored.
        name: one of `mobileo_mlx.models.mobileo.COMPONENTS`.
        dtype: of the floating-point weights; by default `default_dtype` of what is stored.
        quantize: bits for the linear layers and embeddings of a component that is not stored quantized.
        adapters: applied last, so that they do the same to weights quantized here as to those stored quantized.
        merge: see `apply_adapters`.

    Raises:
        CheckpointError: see `Checkpoint.network`.
        OptionError: the component is stored quantized with other bits.
        NotFiniteError: what is quantized has values that are not finite. Of other weights they show when these are
            used.
    """
    stored = checkpoint.quantization.get(name)
    if stored is not None and quantize is not None and quantize != stored:
        raise OptionError(
            f"{name} of '{checkpoint.path}' is quantized to {stored.bits} bits already; start from the original."
        )
    module = checkpoint.network(name)
    if quantize is not None and stored is None:
        try:
            module = quantize_module(module, quantize)
        except NotFiniteError as error:
            raise NotFiniteError(name, stored_fault(checkpoint, name)) from error
    module = apply_adapters(adapters, name, module, checkpoint.config, merge=merge)
    module.set_dtype(dtype or precision.default_dtype(name, checkpoint.stored_dtype(name)))
    return module.eval()
