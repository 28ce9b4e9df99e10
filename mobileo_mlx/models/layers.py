"""Layers that more than one network uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..ops import backend
from ..ops.activations import silu
from ..ops.blocks import Chain
from ..ops.depthwise import DepthwiseConv2d


def compute_dtype(module: nn.Module) -> mx.Dtype:
    """What a network computes in: the dtype of its floating-point parameters, which quantized layers have, too."""
    arrays: dict[str, mx.array] = tree_flatten(module.parameters(), destination={})  # type: ignore[assignment]
    return next(array.dtype for array in arrays.values() if mx.issubdtype(array.dtype, mx.floating))


class AdaptedLinear(nn.Module):
    """A linear layer with low-rank updates (arXiv 2106.09685) beside it, whose own weight stays as it is.

    mlx-lm's `LoRALinear`, which training uses, would do; but importing mlx-lm takes seconds, and drawing does without.

    Args:
        linear: the layer.
        a: (inputs, ranks), of all updates together.
        b: (ranks, outputs), times the scales.
    """

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear, a: mx.array, b: mx.array):
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.a) @ self.b


def dense_weight(layer: nn.Module) -> mx.array | None:
    """What a linear layer multiplies by, (outputs, inputs) float32: dequantized, and with the updates beside it.

    None where it is a layer of another kind.
    """
    if isinstance(layer, AdaptedLinear):
        inner = dense_weight(layer.linear)
        return None if inner is None else inner + (layer.a.astype(mx.float32) @ layer.b.astype(mx.float32)).T
    if isinstance(layer, nn.QuantizedLinear):
        how: dict[str, Any] = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return mx.dequantize(layer.weight, layer.scales, layer.biases, **how).astype(mx.float32)
    return layer.weight.astype(mx.float32) if type(layer) is nn.Linear else None


class GLUMBConv(Chain):
    """The Mix-FFN of SANA (arXiv 2410.10629, section 2.3): 1x1, SiLU, depthwise 3x3, gate, 1x1.

    Args:
        channels: input and output channels.
        expand_ratio: hidden channels / channels.

    Input and output have shape (B, H, W, channels).
    """

    def __init__(self, channels: int, expand_ratio: float):
        super().__init__()
        hidden = int(expand_ratio * channels)
        self.conv_inverted = nn.Linear(channels, 2 * hidden)
        self.conv_depth = DepthwiseConv2d(2 * hidden, 3)
        self.conv_point = nn.Linear(hidden, channels, bias=False)

    def steps(self) -> Sequence[Any]:
        depth, gate = self.conv_depth, gated
        if not backend.on_cpu():  # the bias is added with the gate, in one compiled kernel
            depth, gate = depth.without_bias(), partial(gated, bias=depth.bias)
        return self.conv_inverted, silu, depth, gate, self.conv_point


def gated(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """value * SiLU(gate), the halves of the channels of x + bias: (..., 2 C) to (..., C)."""
    value, gate = mx.split(x, 2, axis=-1)
    if bias is not None:
        first, second = mx.split(bias, 2)
        value, gate = value + first, gate + second
    return value * silu(gate)


def relu_linear_attention(q: mx.array, k: mx.array, v: mx.array, eps: float) -> mx.array:
    """Linear attention with ReLU kernels (SANA, section 2.2): O(N) in the number of tokens.

    Args:
        q, k, v: (..., N, D). Computed in float32, because the sums over N overflow float16.
        eps: added to the normaliser, which is zero where all of a query's features are.

    Returns:
        (..., N, D) in the dtype of `v`.
    """
    dtype = v.dtype
    q, k, v = (mx.maximum(q, 0).astype(mx.float32), mx.maximum(k, 0).astype(mx.float32), v.astype(mx.float32))
    # One more channel of the values, 1 everywhere, gives the normaliser q sum_n k_n together with the rest.
    v = mx.concatenate([v, mx.ones((*v.shape[:-1], 1))], axis=-1)
    y = q @ (k.swapaxes(-1, -2) @ v)  # (..., N, D + 1)
    return (y[..., :-1] / (y[..., -1:] + eps)).astype(dtype)
