"""The attention of FastViTHD's last two stages, whose heads are of 32 channels: fewer than fused kernels take."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .activations import shifted_exp


def padded_attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Attention with heads of fewer than 64 channels, which Metal has no fused kernel for, as heads of 64.

    Zeros add nothing to the scores, and what they add to the values is cut off; (heads, N, N) is never stored.
    """
    dim = q.shape[-1]
    q, k, v = (mx.pad(x, [(0, 0)] * 3 + [(0, max(0, 64 - dim))]) for x in (q, k, v))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)[..., :dim]


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


class Attention(nn.Module):
    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, -1, self.head_dim)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (B, heads, H W, head_dim)
        y = self._attend(q, k, v)
        return self.proj(y.swapaxes(1, 2).reshape(batch, height, width, dim))

    def _attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        scale = self.head_dim**-0.5
        if self.training:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
        if mx.default_device() == mx.cpu:
            return attention_by_heads(q, k, v, scale)
        if mx.metal.is_available():
            return padded_attention(q, k, v, scale)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
