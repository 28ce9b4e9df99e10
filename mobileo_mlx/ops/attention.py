"""Attention in the form that the backend at hand has a fast kernel for."""

from __future__ import annotations

import mlx.core as mx

from . import backend
from .activations import softmax
from .cpu.attention import BLOCK, attention_by_heads, blockwise_causal_attention


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, *, training: bool = False) -> mx.array:
    """softmax(scale q k^T) v without a mask, for heads of fewer channels than fused kernels take.

    Args:
        q, k, v: (B, heads, N, D).
        training: take MLX's own form, whose gradient is exact.
    """
    if not training:
        if backend.on_cpu():
            return attention_by_heads(q, k, v, scale)
        if backend.backend() == "metal":
            return padded_attention(q, k, v, scale)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


def masked_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | str | None, *, training: bool = False
) -> mx.array:
    """softmax(scale q k^T) v, with as many heads of queries as of keys and values or a multiple.

    Args:
        q: (B, heads, T, D).
        k, v: (B, kv_heads, S, D), S >= T.
        scale: D^-0.5.
        mask: (B, 1, T, S) bool, True where a key is seen; "causal"; or None for nothing hidden.
        training: take MLX's own form, whose gradient is exact.
    """
    blocks = isinstance(mask, str) and q.shape[2] > BLOCK and q.dtype == mx.float32
    if blocks and not training and backend.on_cpu():
        return blockwise_causal_attention(q, k, v, scale)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def biased_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, bias: mx.array | None, *, training: bool = False
) -> mx.array:
    """softmax(scale q k^T + bias) v.

    Args:
        q: (B, heads, T, D).
        k, v: (B, heads, N, D).
        scale: D^-0.5.
        bias: (B, 1, 1, N); None for nothing.
        training: take MLX's own form, whose gradient is exact.
    """
    if backend.on_cpu() and not training:  # our softmax is faster there: 2 % of a step of SANA
        scores = (scale * q) @ k.swapaxes(-1, -2)
        return softmax(scores if bias is None else scores + bias) @ v
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)


def padded_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Attention with heads of fewer than 64 channels, which Metal has no fused kernel for, as heads of 64.

    Zeros add nothing to the scores, and what they add to the values is cut off; (heads, N, N) is never stored.
    """
    dim = q.shape[-1]
    q, k, v = (mx.pad(x, [(0, 0)] * 3 + [(0, max(0, 64 - dim))]) for x in (q, k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)[..., :dim]
