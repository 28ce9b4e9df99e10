"""Attention for MLX's CPU backend, which has no kernel for it and computes exp one element at a time."""

from __future__ import annotations

import mlx.core as mx

from ..activations import shifted_exp

BLOCK = 64  # queries at once: smaller ones save little more of the hidden half, and make smaller products


def blockwise_causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """softmax(scale q k^T) v, where the queries are the last positions of the keys and see none after their own.

    The queries go in blocks, and each block is multiplied with no keys after its end: what a mask would hide is
    computed within a block alone. With the maximum m of a row, softmax(s) v = sum_j e_j v_j / sum_j e_j for
    e_j = exp(s_j - m), so that it is the result that is divided and not the weights.

    Args:
        q: (B, heads, T, head_dim) float32.
        k, v: (B, kv_heads, S, head_dim), S >= T; heads is a multiple of kv_heads.
        scale: head_dim^-0.5.

    Returns:
        (B, heads, T, head_dim).
    """
    batch, heads, length, dim = q.shape
    kv_heads, end = k.shape[1], k.shape[2]
    # The heads of a group have the same keys, so that all their rows are one product.
    q, k = (q * scale).reshape(batch, kv_heads, -1, length, dim), k.swapaxes(-1, -2)
    blocks = []
    for first in range(0, length, BLOCK):
        rows = min(BLOCK, length - first)
        seen = end - length + first + rows
        later = mx.arange(seen) > mx.arange(seen - rows, seen)[:, None]
        scores = q[..., first : first + rows, :].reshape(batch, kv_heads, -1, dim) @ k[..., :seen]
        scores = scores.reshape(batch, kv_heads, -1, rows, seen) + mx.where(later, -mx.inf, 0.0)
        weights = shifted_exp(scores, scores.max(axis=-1, keepdims=True))
        y = (weights.reshape(batch, kv_heads, -1, seen) @ v[:, :, :seen]).reshape(batch, kv_heads, -1, rows, dim)
        blocks.append(y / weights.sum(axis=-1, keepdims=True))
    return mx.concatenate(blocks, axis=-2).reshape(batch, heads, length, dim)


def attention_by_heads(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Attention of one head after the other, in float32: its scores stay in a CPU's cache, those of all fill 100 MB.

    A value of 1 that is attended to like the others is the sum of the weights.
    """
    heads, ones = [], mx.ones((*v[:, 0].shape[:-1], 1))
    for i in range(q.shape[1]):
        query, key, value = (x[:, i].astype(mx.float32) for x in (q, k, v))  # (B, N, D)
        scores = (scale * query) @ key.swapaxes(-1, -2)
        weights = shifted_exp(scores, scores.max(axis=-1, keepdims=True))
        y = weights @ mx.concatenate([value, ones], axis=-1)
        heads.append(y[..., :-1] / y[..., -1:])
    return mx.stack(heads, axis=1).astype(v.dtype)
