"""The text of a drawing, and what SANA's cross-attentions read of it in all steps: computed once.

Keys and values are made once a drawing. The unconditional text of zero hidden states, equal almost everywhere, is read
as its few distinct tokens. And keys and values of few tokens absorb the projections of queries and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .layers import AdaptedLinear, dense_weight
from .sana import AbsorbedTextKV, BlockText, CrossAttention, SanaTransformer, TextKV, text_bias


@dataclass(frozen=True)
class TextInput:
    """A text that the rows of a step read.

    Attributes:
        states: the connector's output, (R, N, caption_channels). The rows are split evenly and in order among its R:
            1 is one text for all, the number of rows a text for each.
        mask: (R, N) bool, True where a position is to be seen; all of them where it is None.
        halo: where the R are equal, and so are all positions but this many at each end, as those of zero hidden states
            are: the connector's `halo`. None where nothing is known of it.
    """

    states: mx.array
    mask: mx.array | None = None
    halo: int | None = None


def prepare_text_kv(
    dit: SanaTransformer, texts: Sequence[TextInput], *, donate: bool = False
) -> list[tuple[BlockText, ...]]:
    """The texts as each block reads them, evaluated.

    The form depends on what a text is, and on no number of rows or steps: an image of a batch is the one that its
    seed draws alone.

    Args:
        donate: whether `dit` may lose the weights that no step reads any more; see `PreparedSana`.
    """
    projected = []
    for text in texts:
        uniform = text.halo is not None and text.mask is None
        states, counts = deduplicate_uniform(text.states, text.halo or 0) if uniform else (text.states, None)
        states = dit.project_text(states)
        projected.append((states, text_bias(states.dtype, text.mask, counts)))
    prepared = []
    for block in dit.transformer_blocks:
        attention = block.attn2
        plain = [attention.read(states, bias) for states, bias in projected]
        read = tuple(
            (absorb(attention, text) if absorbing_pays(text, dit.config.dim) else None) or text for text in plain
        )
        mx.eval(read)  # block by block: what it is made of is larger than the result
        prepared.append(read)
        if donate:
            unread = ["to_k", "to_v"] + (["to_q", "to_out"] if all("a" in text for text in read) else [])
            for name in unread:
                del attention[name]
    return prepared


def absorbing_pays(text: TextKV, dim: int) -> bool:
    """Whether `absorb` leaves fewer multiplications for each row: it does for one text of some 75 tokens at most.

    With N tokens they are 2 heads N dim, instead of 2 inner dim for the projections and 2 inner N for the attention.
    """
    rows, _, count, width = text["keys"].shape
    return rows == 1 and count * dim <= width * (dim + count)


def deduplicate_uniform(states: mx.array, halo: int) -> tuple[mx.array, mx.array | None]:
    """One of states that are equal, and how many each stands for.

    c equal keys of score s weigh c exp(s) = exp(s + log c): one of them is enough, with log c added to its score.

    Args:
        states: (R, N, caption_channels), equal among the R; of the N equal but for the first and the last `halo`.

    Returns:
        (1, n, caption_channels), n = min(N, 2 halo + 1); and (n,), or None where each stands for itself.
    """
    states, length = states[:1], states.shape[1]
    if length <= 2 * halo + 1:
        return states, None
    kept = mx.concatenate([states[:, : halo + 1], states[:, length - halo :]], axis=1)
    return kept, mx.array([1] * halo + [length - 2 * halo] + [1] * halo)


def absorb(attention: CrossAttention, text: TextKV) -> AbsorbedTextKV | None:
    """Cross-attention to one text without queries: the keys absorb their projection, the values that of the outputs.

    With head h's parts Wq_h (head_dim, dim) and Wo_h (dim, head_dim), s = head_dim^-0.5 and P = softmax(S):

        S_h = s (x Wq_h^T + bq_h) K_h^T = x A_h^T + s bq_h K_h^T,    A_h = s K_h Wq_h       (N, dim)
        y = sum_h P_h V_h Wo_h^T + bo = sum_h P_h B_h,               B_h = V_h Wo_h^T + bo / heads

    because the rows of each P_h sum to 1. Softmax is invariant to a shift of all keys; subtracting their mean keeps
    scores small in half precision, where S is rounded here while the fused attention keeps it in float32. A and B are
    computed in float32 and rounded once. With few tokens the two products are far smaller than the two projections.

    Args:
        text: with R = 1.

    Returns:
        None where a projection is no linear layer, such as one that is being trained with an update beside it.
    """
    query, output = _dense(attention.to_q), _dense(attention.to_out[0])
    if query is None or output is None:
        return None
    dtype, bias = text["keys"].dtype, text["bias"]
    k, v = (text[name][0].astype(mx.float32) for name in ("keys", "values"))  # (heads, N, head_dim)
    heads, _, width = k.shape
    k = (k - k.mean(axis=1, keepdims=True)) * width**-0.5
    (wq, bq), (wo, bo) = query, output
    a = k @ wq.reshape(heads, width, -1)  # (heads, N, dim)
    a_bias = k @ bq.reshape(heads, width, 1)  # (heads, N, 1)
    if bias is not None:
        a_bias = a_bias + bias[0].astype(mx.float32).swapaxes(-1, -2)
    b = v @ wo.T.reshape(heads, width, -1) + bo / heads
    return {
        "a": a.flatten(0, 1).astype(dtype),
        "a_bias": a_bias.flatten().astype(dtype),
        "b": b.flatten(0, 1).astype(dtype),
    }


def _dense(layer: nn.Module) -> tuple[mx.array, mx.array] | None:
    """Weight and bias of a linear layer in float32, or None where it is of another kind."""
    if (weight := dense_weight(layer)) is None:
        return None
    inner = layer.linear if isinstance(layer, AdaptedLinear) else layer
    bias = inner.bias if "bias" in inner else mx.zeros((weight.shape[0],))
    return weight, bias.astype(mx.float32)
