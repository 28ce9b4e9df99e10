"""Qwen2 (arXiv 2407.10671): a decoder with grouped-query attention, rotary positions and biases on q, k and v.

It takes embeddings, not ids, because image features take places among them. The cache is an argument, never a
member; any object with `offset` and `update_and_fetch(keys, values)` serves, mlx-lm's caches among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, Count, Epsilon, Range, Width
from ..ops.activations import silu
from ..ops.attention import masked_attention


@dataclass(frozen=True)
class Qwen2Config(Config):
    """The language model's dimensions; keys as in transformers' Qwen2Config, defaults of the 0.5B model."""

    hidden_size: Width  # channels of the stream
    intermediate_size: Width  # channels inside the MLP
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count  # each serves num_attention_heads / num_key_value_heads heads
    vocab_size: Annotated[int, Range(1, 2**22)]
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Annotated[float, Range(1, 1e15)] = 1_000_000.0
    max_position_embeddings: Annotated[int, Range(1, 2**24)] = 32768  # positions of the context

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def problem(self) -> str:
        if self.hidden_size % (2 * self.num_attention_heads):  # rotary positions turn pairs of channels
            return f"has hidden_size = {self.hidden_size}, no even multiple of num_attention_heads"
        if self.num_attention_heads % self.num_key_value_heads:
            return f"has num_attention_heads = {self.num_attention_heads}, no multiple of num_key_value_heads"
        return ""


class Cache(Protocol):
    """What attention asks of a key-value cache of one layer; `mlx_lm.models.cache.KVCache` has it too.

    `offset` is the number of positions in it, and `state` their keys and values.
    """

    offset: int

    @property
    def state(self) -> tuple[mx.array, mx.array]: ...

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]: ...


class KVCache:
    """Keys and values of one layer, (B, kv_heads, T, head_dim), in buffers that grow by `step` positions.

    Interchangeable with mlx-lm's cache of the same name, whose import alone costs more than a second.
    """

    step = 256

    def __init__(self) -> None:
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @classmethod
    def holding(cls, keys: mx.array, values: mx.array) -> KVCache:
        """A cache that begins with these, which stay as they are."""
        cache = cls()
        cache.keys, cache.values, cache.offset = keys, values, keys.shape[2]
        return cache

    @property
    def state(self) -> tuple[mx.array, mx.array]:
        """Keys and values of all positions so far; there has to be one."""
        if self.keys is None or self.values is None:
            raise ValueError("nothing is cached yet")
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends (B, kv_heads, T, head_dim) and returns all that is cached so far."""
        start, end = self.offset, self.offset + keys.shape[2]
        self.keys = _grown(self.keys, keys, start, end, self.step)
        self.values = _grown(self.values, values, start, end, self.step)
        self.keys[..., start:end, :] = keys
        self.values[..., start:end, :] = values
        self.offset = end
        return self.state


def empty_cache(layers: int) -> list[KVCache]:
    """A cache without positions for a language model of so many layers."""
    return [KVCache() for _ in range(layers)]


def _grown(buffer: mx.array | None, new: mx.array, start: int, end: int, step: int) -> mx.array:
    if buffer is not None and end <= buffer.shape[2]:
        return buffer
    batch, heads, _, dim = new.shape
    extra = -(-(end - start) // step) * step
    added = mx.zeros((batch, heads, extra, dim), new.dtype)
    return added if buffer is None else mx.concatenate([buffer[..., :start, :], added], axis=2)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions (section 2.2.1); q, k and v have biases, the output has none."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        dim, kv_dim = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, kv_dim)
        self.v_proj = nn.Linear(dim, kv_dim)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, cache: Cache | None, rows: slice = slice(None)
    ) -> mx.array:
        """(B, T, hidden_size) to the same of those positions that `rows` selects; all of them are keys and values."""
        offset = cache.offset if cache is not None else 0

        def heads(y: mx.array) -> mx.array:
            return y.reshape(*y.shape[:2], -1, self.head_dim).swapaxes(1, 2)  # (B, heads, T, head_dim)

        def rotated(y: mx.array, start: int) -> mx.array:
            return mx.fast.rope(y, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=start)

        start = rows.indices(x.shape[1])[0]
        q = rotated(heads(self.q_proj(x[:, rows])), offset + start)
        k, v = rotated(heads(self.k_proj(x)), offset), heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        y = masked_attention(q, k, v, self.head_dim**-0.5, mask, training=self.training)
        return self.o_proj(y.swapaxes(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), on (..., hidden_size)."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each behind an RMSNorm and added to the stream."""

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self, x: mx.array, mask: mx.array | str | None, cache: Cache | None, rows: slice = slice(None)
    ) -> mx.array:
        """(B, T, hidden_size) to the same of those positions that `rows` selects; see `Attention`."""
        x = x[:, rows] + self.self_attn(self.input_layernorm(x), mask, cache, rows)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2Model(nn.Module):
    """The transformer without `lm_head`, which drawing never needs.

    Unlike other implementations it takes embeddings (B, T, hidden_size), not ids, and returns hidden states, not
    logits.
    """

    def __init__(self, config: Qwen2Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def make_cache(self) -> list[KVCache]:
        """An empty cache, one entry a layer."""
        return empty_cache(len(self.layers))

    def __call__(
        self,
        inputs_embeds: mx.array,
        *,
        attention_mask: mx.array | None = None,
        cache: Sequence[Cache] | None = None,
        last_only: bool = False,
    ) -> mx.array:
        """The last hidden state, after the final norm: (B, T, hidden_size).

        Args:
            inputs_embeds: (B, T, hidden_size), of any dtype.
            attention_mask: (B, T) bool, True where a token is to be seen; without a cache only.
            cache: one entry a layer, holding the positions before these; extended in place.
            last_only: compute the last position alone, (B, 1, hidden_size), where no more is needed. Of the last layer
                the others are keys and values then; with a whole head behind, that saves 1 / num_hidden_layers.
        """
        if not last_only:
            return self.hidden_states(inputs_embeds, 1, attention_mask=attention_mask, cache=cache)[0]
        if attention_mask is not None:
            raise ValueError("rows that are padded do not end in their last position")
        caches: Sequence[Cache | None] = cache if cache is not None else [None] * len(self.layers)
        mask, x = _mask(inputs_embeds.shape[1], None), inputs_embeds.astype(self.norm.weight.dtype)
        for layer, layer_cache in zip(self.layers[:-1], caches[:-1], strict=True):
            x = layer(x, mask, layer_cache)
        # The last position sees all of them, so it needs no mask.
        return self.norm(self.layers[-1](x, None, caches[-1], slice(-1, None)))

    def hidden_states(
        self,
        inputs_embeds: mx.array,
        last: int,
        *,
        attention_mask: mx.array | None = None,
        cache: Sequence[Cache] | None = None,
    ) -> list[mx.array]:
        """The `last` hidden states, each (B, T, hidden_size), as transformers counts them.

        There are num_hidden_layers + 1: the embeddings, the output of every layer but the last, and the output
        of the last layer *after* the final norm.
        """
        x = inputs_embeds.astype(self.norm.weight.dtype)
        mask = _mask(x.shape[1], attention_mask)
        caches: Sequence[Cache | None] = cache if cache is not None else [None] * len(self.layers)
        states = [x]
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, layer_cache)
            states = [*states, x][-last:]
        states[-1] = self.norm(x)
        return states


def _mask(length: int, attention_mask: mx.array | None) -> mx.array | str | None:
    if attention_mask is None:
        return "causal" if length > 1 else None
    causal = mx.tril(mx.ones((length, length), mx.bool_))
    return causal[None, None] & attention_mask[:, None, None, :]  # (B, 1, T, T)


def sanitize(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Upstream's names and layouts are ours; old checkpoints carry rotary tables, which are recomputed."""
    return {k: v for k, v in weights.items() if not k.endswith("rotary_emb.inv_freq")}


def config_from_upstream(config: Mapping[str, Any], vocab_size: int, source: str) -> Qwen2Config:
    """Reads the language model's part of upstream's `config.json`.

    Args:
        config: the parsed file. Recent transformers nest `rope_theta` in `rope_parameters`.
        vocab_size: the rows of the embedding as stored: resized vocabularies are often not written back.
        source: the file, for errors.
    """
    rope = config.get("rope_parameters")
    theta = {"rope_theta": rope["rope_theta"]} if isinstance(rope, Mapping) and "rope_theta" in rope else {}
    return Qwen2Config.from_dict({**config, **theta, "vocab_size": vocab_size}, source)
