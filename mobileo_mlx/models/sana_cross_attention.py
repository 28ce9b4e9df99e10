"""The text of a drawing as SANA's cross-attentions read it in all steps: computed once, in the form of least work."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..ops.activations import softmax
from .sana import CrossAttention


@dataclass(frozen=True)
class TextInput:
    """interim"""

    states: mx.array
    mask: mx.array | None = None
    halo: int | None = None


@dataclass(frozen=True)
class Text:
    """What some rows of a step read.

    Attributes:
        states: the connector's output, (R, N, caption_channels). The rows that read it are split evenly and in order
            among its R.
        mask: (R, N) bool, True where a position is to be seen; all of them where it is None.
        counts: how many equal positions each of the N stands for, (N,); 1 where it is None.
    """

    states: mx.array
    mask: mx.array | None = None
    counts: mx.array | None = None


def distinct(states: mx.array, edge: int) -> Text:
    """The text of states that are equal everywhere but near their ends, each value once.

    c equal keys of score s weigh c exp(s) = exp(s + log c): one of them is enough, with log c added to its score.

    Args:
        states: (R, N, caption_channels), equal among the R; of the N equal but for the first and the last `edge`.
        edge: see `MobileConditioningProjector.reach`.
    """
    states, length = states[:1], states.shape[1]
    if length <= 2 * edge + 1:
        return Text(states)
    kept = mx.concatenate([states[:, : edge + 1], states[:, length - edge :]], axis=1)
    return Text(kept, counts=mx.array([1] * edge + [length - 2 * edge] + [1] * edge))


@dataclass(frozen=True)
class TextKV:
    """A text for one block as keys and values: `CrossAttention` as it is."""

    keys: mx.array  # (R, heads, N, head_dim)
    values: mx.array
    bias: mx.array | None  # (R, 1, 1, N)

    @property
    def contexts(self) -> int:
        """R, among which the rows that read the text are split."""
        return self.keys.shape[0]

    def attend(self, attention: CrossAttention, x: mx.array) -> mx.array:
        return x + attention(x, self.keys, self.values, self.bias)


@dataclass(frozen=True)
class AbsorbedTextKV:
    """A text for one block together with the block's projections of queries and outputs; see `absorbed`."""

    a: mx.array  # (R, heads N, dim)
    a_bias: mx.array  # (R, 1, heads N)
    b: mx.array  # (R, heads N, dim)

    @property
    def contexts(self) -> int:
        return self.a.shape[0]

    def attend(self, attention: CrossAttention, x: mx.array) -> mx.array:
        scores = mx.addmm(self.a_bias, x, self.a.swapaxes(-1, -2))  # (R, M, heads N)
        grouped = scores.reshape(*scores.shape[:-1], attention.heads, -1)
        weights = softmax(grouped).reshape(scores.shape)
        return mx.addmm(x, weights, self.b)


def absorbed(
    attention: CrossAttention, keys: mx.array, values: mx.array, bias: mx.array | None
) -> AbsorbedTextKV | None:
    """Cross-attention without queries: their projection is absorbed by the keys, that of the outputs by the values.

    With head h's parts Wq_h (head_dim, dim) and Wo_h (dim, head_dim), s = head_dim^-0.5 and P = softmax(S):

        S_h = s (x Wq_h^T + bq_h) K_h^T = x A_h^T + s bq_h K_h^T,    A_h = s K_h Wq_h       (N, dim)
        y = sum_h P_h V_h Wo_h^T + bo = sum_h P_h B_h,               B_h = V_h Wo_h^T + bo / heads

    because the rows of each P_h sum to 1. Softmax does not see what all keys have in common, so that K is taken less
    its mean over N. Half precision needs that: S is rounded here, while the fused attention keeps it in float32, and
    the smaller it and A are, the less is lost. A and B are computed in float32 and rounded once.

    Returns:
        None where a projection is no linear layer with one weight, such as one with an update beside it.
    """
    query, output = _dense(attention.to_q), _dense(attention.to_out[0])
    if query is None or output is None:
        return None
    dtype, rows, heads, count, width = keys.dtype, *keys.shape
    k, v = keys.astype(mx.float32), values.astype(mx.float32)
    k = (k - k.mean(axis=2, keepdims=True)) * width**-0.5
    (wq, bq), (wo, bo) = query, output
    a = k @ wq.reshape(heads, width, -1)  # (R, heads, N, dim)
    a_bias = k @ bq.reshape(heads, width, 1)  # (R, heads, N, 1)
    if bias is not None:
        a_bias = a_bias + bias.astype(mx.float32).swapaxes(-1, -2)
    b = v @ wo.T.reshape(heads, width, -1) + bo / heads
    shape = (rows, heads * count, -1)
    return AbsorbedTextKV(
        a.reshape(shape).astype(dtype),
        a_bias.reshape(rows, 1, heads * count).astype(dtype),
        b.reshape(shape).astype(dtype),
    )


def _dense(layer: nn.Module) -> tuple[mx.array, mx.array] | None:
    """Weight and bias of a linear layer in float32, or None where it is not a plain or a quantized one."""
    if isinstance(layer, nn.QuantizedLinear):
        weight = mx.dequantize(
            layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits, mode=layer.mode
        )
    elif type(layer) is nn.Linear:
        weight = layer.weight
    else:
        return None
    bias = layer.bias if "bias" in layer else mx.zeros((weight.shape[0],))
    return weight.astype(mx.float32), bias.astype(mx.float32)


def absorbing_pays(dim: int, inner: int, heads: int, keys: int, queries: int) -> bool:
    """Whether `absorbed` needs fewer multiplications than projecting `queries` rows in all the steps together."""
    plain = queries * 2 * inner * (dim + keys)
    return queries * 2 * dim * heads * keys + 2 * keys * dim * inner < plain


def prepare_text_kv(
    attention: CrossAttention, text: mx.array, bias: mx.array | None, queries: int
) -> TextKV | AbsorbedTextKV:
    """A text as a block's cross-attention reads it, in the form that takes the fewest multiplications."""
    keys, values = attention.keys_values(text)
    _, heads, count, width = keys.shape
    if absorbing_pays(text.shape[-1], heads * width, heads, count, queries):
        found = absorbed(attention, keys, values, bias)
        if found is not None:
            return found
    return TextKV(keys, values, bias)
