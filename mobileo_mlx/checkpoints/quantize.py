"""Weights in few bits: which components, which layers, and a linear layer that stays fast for many rows.

Quantization is affine and by groups along the input (`mx.quantize`). It is computed from the weights as they are
stored, before any change of dtype; so quantizing while loading and quantizing while converting give the same numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..errors import NotFiniteError, OptionError
from ..ops import backend, forms
from ..ops.finite import is_finite
from . import by_component
from .modules import get_submodule, set_submodule

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZE = 64

# Bits by component, by name; what each costs, `benchmarks.presets` measures. The vision tower, the autoencoder and the
# connectors stay as they are stored: they are small, convolutions for the most part, or both, and when tasks run in
# stages none of them is what memory peaks at.
PRECISIONS: dict[str, dict[str, int]] = {
    "small": {"llm": 4, "lm_head": 4, "dit": 8},
    "balanced": {"llm": 8, "lm_head": 8, "dit": 8},
    "full": {},
}

# From this number of rows on it is faster to dequantize the weight once and to multiply densely. On a CPU the
# quantized product runs at 2 GFLOP/s and takes twice the time for twice the rows, while the dense one reaches BLAS:
# they meet at four rows, and at 300 rows the dense one is 34 times faster. On a GPU both are bound by arithmetic above
# some hundred rows, where the dense kernel should be the better one; below, by reading the weight. That is argued, not
# measured: `ops.forms` may know better for a layer of these widths and bits.
MANY_ROWS_CPU = 4
MANY_ROWS_GPU = 256


@dataclass(frozen=True)
class QuantizeSpec:
    """How a component is quantized."""

    bits: int
    group_size: int = GROUP_SIZE  # 32 for a layer whose width is no multiple of 64

    def layer_group_size(self, width: int) -> int | None:
        """The group size for a layer with `width` inputs; None where the layer stays as it is."""
        return next((size for size in (self.group_size, 32) if width % size == 0), None)


def parse_quantize(text: str) -> dict[str, int]:
    """Reads an option such as "llm=4,dit=8" into bits per component; see `resolve_quantize`.

    Raises:
        OptionError: it can't be understood.
    """
    form = "component=bits,..., as in llm=4,dit=8"
    requested = by_component.parse(text, "quantization", form)
    if not all(bits.isdecimal() for bits in requested.values()):
        raise OptionError(f"quantization {text!r} is not of the form {form}.")
    return resolve_quantize({name: int(bits) for name, bits in requested.items()})


def resolve_quantize(requested: Mapping[str, int] | None) -> dict[str, int]:
    """Bits per component, with the aliases `all` and `vae` resolved; see `by_component.resolve`.

    Raises:
        OptionError: an unknown component, or a number of bits that MLX does not have.
    """
    for name, bits in (requested or {}).items():
        if isinstance(bits, bool) or bits not in BITS:
            raise OptionError(f"{name}={bits}: the bits can be {', '.join(map(str, BITS[:-1]))} or {BITS[-1]}.")
    return by_component.resolve(requested or {}, "to quantize")


def resolve_bits(requested: Mapping[str, int] | None, precision: str | None = None) -> dict[str, int]:
    """Bits per component: those of a precision, and over them those that are requested, as `resolve_quantize` does.

    Raises:
        OptionError: an unknown precision, an unknown component, or a number of bits that MLX does not have.
    """
    if precision is not None and precision not in PRECISIONS:
        raise OptionError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}.")
    return (PRECISIONS[precision] if precision is not None else {}) | resolve_quantize(requested)


class QuantizedLinear(nn.QuantizedLinear):
    """`mlx.nn.QuantizedLinear` that multiplies densely where many rows come at once (see MANY_ROWS_CPU)."""

    def __call__(self, x: mx.array) -> mx.array:
        rows = x.size // x.shape[-1]
        form = "dense" if rows >= (MANY_ROWS_CPU if backend.on_cpu() else MANY_ROWS_GPU) else "packed"
        if rows > 1:  # a token's one row is asked nothing
            form = forms.chosen("quantized", self._key(rows), form)
        if form == "packed":
            return super().__call__(x)
        weight = mx.dequantize(
            self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits, mode=self.mode
        )
        y = x @ weight.T
        return y + self.bias if "bias" in self else y

    def _key(self, rows: int) -> str:
        outputs, width = self.weight.shape[0], self.scales.shape[1] * self.group_size
        dtype = forms.dtype_name(self.scales.dtype)
        return f"{width}>{outputs} {self.bits} bits {dtype} {forms.about(rows)} rows"


def quantize(module: nn.Module, spec: QuantizeSpec) -> nn.Module:
    """Quantizes the linear layers and embeddings of a module, in place and one after the other.

    Each one is computed at once and takes the place of the original, so that lazily loaded weights are in memory for
    one layer at a time. Convolutions, norms, and layers whose width is no multiple of 32 stay as they are.

    Returns:
        the module; another one if it was a single layer itself.

    Raises:
        NotFiniteError: a weight is not finite, which quantizing would hide; the name is that of the layer.
    """
    # The largest first: while it is in memory in full, little else is.
    paths = sorted(_layers(module), key=lambda path: -get_submodule(module, path).weight.size)
    for path in paths:
        layer = get_submodule(module, path)
        group_size = spec.layer_group_size(layer.weight.shape[-1])
        if group_size is None:
            continue
        new: nn.Module
        if isinstance(layer, nn.Embedding):
            new = nn.QuantizedEmbedding.from_embedding(layer, group_size, spec.bits)
        else:
            new = QuantizedLinear.from_linear(layer, group_size, spec.bits)
        module = set_submodule(module, path, new)
        if not is_finite(layer.weight):
            raise NotFiniteError(path)
        # The last reference to the original has to go before the next layer is read.
        del layer
        mx.eval(new.parameters())
    mx.clear_cache()
    return module


def quantized_skeleton(module: nn.Module, names: Container[str], spec: QuantizeSpec) -> nn.Module:
    """Gives a module the structure of quantized weights, without values: wherever `<layer>.scales` is among `names`.

    Returns:
        the module; another one if it was a single layer itself.
    """
    for path in list(_layers(module)):
        layer = get_submodule(module, path)
        outputs, width = layer.weight.shape
        group_size = spec.layer_group_size(width)
        if group_size is None or f"{path}.scales".lstrip(".") not in names:
            continue
        new: nn.Module
        if isinstance(layer, nn.Embedding):
            new = nn.QuantizedEmbedding(outputs, width, group_size, spec.bits)
        else:
            new = QuantizedLinear(width, outputs, "bias" in layer, group_size, spec.bits)
        module = set_submodule(module, path, new)
    return module


def _layers(module: nn.Module) -> Iterator[str]:
    """The paths of the layers that can be quantized. A subclass may compute something else, so it is left alone."""
    for path, layer in module.named_modules():
        if type(layer) in (nn.Linear, nn.Embedding):
            yield path
