"""Causal attention for MLX's CPU backend, which has no kernel for it and computes exp one element at a time."""

from __future__ import annotations

import functools

import mlx.core as mx

BLOCK = 64  # queries at once: smaller ones save little more of the hidden half, and make smaller products

# exp(y) for -2 <= y <= 0, by powers of y: a least-squares fit of the relative error, 2.3e-7 at most.
_EXP = (1.0, 0.999992832, 0.499922975, 0.166371877, 0.0411093644, 0.00774609993, 0.0010293269, 7.14649879e-05)
_SQUARINGS = 4
_RANGE = 2.0


def causal_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """softmax(scale q k^T) v, where the queries are the last positions of the keys and see none after their own.

    The queries go in blocks, and each block is multiplied with no keys after its end: what a mask would hide is
    computed within a block alone. With the maximum m of a row, softmax(s) v = sum_j e_j v_j / sum_j e_j for
    e_j = exp(s_j - m), so that it is the result that is divided and not the weights; and
    exp(x) = exp(x / 16)^16 takes a polynomial, which is good to 2e-6 of a row's largest weight.

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
        weights = _exp_of_difference(scores, scores.max(axis=-1, keepdims=True))
        y = (weights.reshape(batch, kv_heads, -1, seen) @ v[:, :, :seen]).reshape(batch, kv_heads, -1, rows, dim)
        blocks.append(y / weights.sum(axis=-1, keepdims=True))
    return mx.concatenate(blocks, axis=-2).reshape(batch, heads, length, dim)


@functools.partial(mx.compile, shapeless=True)
def _exp_of_difference(x: mx.array, largest: mx.array) -> mx.array:
    """exp(x - largest) for x <= largest; what is below exp(-32) becomes that, 1e-14."""
    y = mx.maximum((x - largest) * 2.0**-_SQUARINGS, -_RANGE)
    square = y * y
    fourth = square * square
    # Estrin's scheme, whose operations depend on each other less than Horner's.
    a, b, c, d = (_EXP[i] + y * _EXP[i + 1] for i in (0, 2, 4, 6))
    power = a + square * b + fourth * (c + square * d)
    for _ in range(_SQUARINGS):
        power = power * power
    return power
