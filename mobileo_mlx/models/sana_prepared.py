"""SANA for all the steps of one drawing: what they share is computed once, and each step does less work.

`SanaTransformer.__call__` is the plain form, which training uses and which is compared with the reference. This one
gives the same velocity up to rounding, and needs that all rows of a step have the same timestep.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .sana import OUTPUT_NORM_EPS, LinearAttention, SanaTransformer, TransformerBlock, split_heads, text_bias
from .sana_cross_attention import AbsorbedTextKV, Text, TextKV, prepare_text_kv


@dataclass(frozen=True)
class JoinedAttention:
    """Self-attention with one product for queries, keys and values; see `joined`."""

    project: nn.Module  # (..., dim) to (..., 3 dim + heads)
    floor: mx.array  # (3 dim + heads,)
    head_dim: int
    eps: float
    to_out: nn.Module

    def __call__(self, x: mx.array) -> mx.array:
        dim, dtype = x.shape[-1], x.dtype
        y = mx.maximum(self.project(x), self.floor).astype(mx.float32)
        q, k = split_heads(y[..., :dim], self.head_dim), split_heads(y[..., dim : 2 * dim], self.head_dim)
        v = split_heads(y[..., 2 * dim :], self.head_dim + 1)
        z = (q @ (k.swapaxes(-1, -2) @ v)).swapaxes(1, 2)  # (B, T, heads, head_dim + 1)
        return self.to_out((z[..., :-1] / (z[..., -1:] + self.eps)).astype(dtype).flatten(2))


def joined(attention: LinearAttention) -> JoinedAttention | None:
    """`LinearAttention` in fewer operations, with the same rounding.

    The weights Wq, Wk and Wv become one, with a row of zeros after those of each head's values, for the channel of
    ones that `relu_linear_attention` adds to them. max(y, floor) is at once ReLU for queries and keys (floor 0),
    nothing for values (-inf), and 1 for that channel, whose product is 0.

    Returns:
        None where the projections are not three plain linear layers, or three that are quantized alike.
    """
    layers = (attention.to_q, attention.to_k, attention.to_v)
    first, width = layers[0], attention.head_dim
    plain = all(type(layer) is nn.Linear for layer in layers)
    quantized = isinstance(first, nn.QuantizedLinear) and len({(type(v), v.bits, v.group_size) for v in layers}) == 1
    if not (plain or quantized):
        return None
    project = copy.copy(first)
    for name in first:
        q, k, v = (layer[name] for layer in layers)
        v = v.reshape(-1, width, *v.shape[1:])
        v = mx.pad(v, [(0, 0), (0, 1)] + [(0, 0)] * (v.ndim - 2)).reshape(-1, *v.shape[2:])
        project[name] = mx.concatenate([q, k, v])
    dim = first.weight.shape[0]
    values = ([-math.inf] * width + [1.0]) * (dim // width)
    floor = mx.concatenate([mx.zeros((2 * dim,)), mx.array(values)]).astype(attention.to_out[0].bias.dtype)
    return JoinedAttention(project, floor, width, attention.eps, attention.to_out[0])


class PreparedSana:
    """The transformer with all that the steps of one drawing have in common.

    Args:
        dit: the network, in evaluation mode.
        texts: what the rows of a step read, in order. Each of them stands for the same latents.
        halves: how many times a step's latents are taken, one after the other, to make its rows: 2 with guidance.
        timesteps: (S,) of all steps, 0 to 1000.
        latents: the shape of a step's latents, (B, h, w, in_channels).
        consume: whether `dit` may be taken apart. Weights that are read no more, because something that was made of
            them stands in their place, are removed from it as it is prepared, so that memory does not grow. It is of
            no use afterwards.

    Timestep embeddings and the modulation of every block are computed for all steps at once, and the texts become
    what the cross-attentions read.
    """

    def __init__(
        self,
        dit: SanaTransformer,
        texts: Sequence[Text],
        halves: int,
        timesteps: mx.array,
        latents: tuple[int, ...],
        *,
        consume: bool = False,
    ):
        self._dit = dit
        self._dtype = dit.scale_shift_table.dtype
        self._batch, height, width, _ = latents
        self._size = (height // dit.config.patch_size, width // dit.config.patch_size)
        # The last text's rows are all that are left: those of the others are as many latents as there are.
        self._rows = [self._batch] * (len(texts) - 1) + [self._batch * (halves - len(texts) + 1)]
        queries = [rows * self._size[0] * self._size[1] * len(timesteps) for rows in self._rows]
        self._tables, self._final = self._modulations(timesteps)
        projected = [dit.project_text(text.states) for text in texts]
        biases = [
            text_bias(projection.dtype, text.mask, text.counts)
            for projection, text in zip(projected, texts, strict=True)
        ]
        self._blocks: list[Callable[[mx.array, mx.array], mx.array]] = []
        self._attentions: list[Callable[[mx.array], mx.array]] = []
        self._texts: list[list[TextKV | AbsorbedTextKV]] = []
        for index, block in enumerate(dit.transformer_blocks):
            read = [
                prepare_text_kv(block.attn2, projection, bias, count // text.states.shape[0])
                for projection, text, bias, count in zip(projected, texts, biases, queries, strict=True)
            ]
            attention = self._consumed(block, read) if consume else block.attn1
            # Weights, too: a compiled function would read those that are still on the disk again with each call.
            mx.eval(block.parameters(), [vars(text) for text in read])
            if isinstance(attention, JoinedAttention):
                mx.eval(attention.project.parameters(), attention.floor)
            self._texts.append(read)
            self._attentions.append(attention)
            self._blocks.append(self._step(index, read, self._rows, halves if index == 0 else 1))

    def _consumed(
        self, block: TransformerBlock, texts: Sequence[TextKV | AbsorbedTextKV]
    ) -> Callable[[mx.array], mx.array]:
        """Removes from a block what its texts stand for, and its three projections for the joined one it returns."""
        gone = ["to_k", "to_v"]
        if all(isinstance(text, AbsorbedTextKV) for text in texts):
            gone += ["to_q", "to_out"]
        for name in gone:
            del block.attn2[name]
        attention = joined(block.attn1)
        if attention is None:
            return block.attn1
        for name in ("to_q", "to_k", "to_v"):
            del block.attn1[name]
        return attention

    def _modulations(self, timesteps: mx.array) -> tuple[list[list[mx.array]], list[mx.array]]:
        """For each step that of each block, (6, dim), and of the output, (2, dim); 1 is added to the scales."""
        dit = self._dit
        modulation, embedded = dit.time_embed(timesteps, self._dtype)
        steps = len(timesteps)
        tables = mx.stack([block.scale_shift_table for block in dit.transformer_blocks])
        tables = tables[:, None] + modulation.reshape(steps, 6, -1)
        final = dit.scale_shift_table + embedded[:, None]
        tables = tables + mx.array([0, 1, 0, 0, 1, 0], self._dtype)[:, None]
        final = final + mx.array([0, 1], self._dtype)[:, None]
        split = [_rows(step) for step in _rows(tables.swapaxes(0, 1))]
        ends = _rows(final)
        mx.eval(split, ends)
        return split, ends

    def _step(
        self, index: int, texts: list[TextKV | AbsorbedTextKV], rows: list[int], copies: int
    ) -> Callable[[mx.array, mx.array], mx.array]:
        # Without a reference to this object, so that it goes as soon as the drawing has done with it.
        block, attention, size = self._dit.transformer_blocks[index], self._attentions[index], self._size

        def run(x: mx.array, table: mx.array) -> mx.array:
            return run_block(block, x, table, attention, texts, rows, size, copies)

        # On a CPU kernels of several operations lose more, vector instructions, than they save.
        return run if mx.default_device() == mx.cpu else mx.compile(run)

    def alone(self, which: int) -> PreparedSana:
        """The same for the rows of text `which` alone, once for each of the latents. All that is prepared is shared."""
        one = copy.copy(self)
        one._rows = [self._batch]
        one._texts = [[texts[which]] for texts in self._texts]
        one._blocks = [self._step(index, texts, one._rows, 1) for index, texts in enumerate(one._texts)]
        return one

    def __call__(self, index: int, latents: mx.array) -> mx.array:
        """The velocity at step `index`, (halves B, h, w, out_channels): the plain form's for all rows.

        Args:
            index: 0 to S - 1.
            latents: (B, h, w, in_channels), of any dtype.
        """
        dit = self._dit
        x = dit.patch_embed(latents.astype(self._dtype))
        for block, table in zip(self._blocks, self._tables[index], strict=True):
            x = block(x, table)
        shift, scale = self._final[index]
        return dit.unpatch(dit.proj_out(mx.fast.layer_norm(x, scale, shift, OUTPUT_NORM_EPS)), self._size)


def _rows(x: mx.array) -> list[mx.array]:
    return [row.squeeze(0) for row in mx.split(x, x.shape[0])]


def run_block(
    block: TransformerBlock,
    x: mx.array,
    table: mx.array,
    attention: Callable[[mx.array], mx.array],
    texts: Sequence[TextKV | AbsorbedTextKV],
    rows: Sequence[int],
    size: tuple[int, int],
    copies: int = 1,
) -> mx.array:
    """A block whose rows have one timestep, so that a modulated norm is a norm with weight and bias.

    Args:
        block: the block.
        x: (B, T, dim).
        table: shift, 1 + scale and gate before the self-attention, then before the convolutions, (6, dim).
        attention: the block's self-attention, as it is or joined.
        texts: what the rows read.
        rows: how many read each of them.
        size: of the latents in patches.
        copies: how often x is repeated after the self-attention, which sees nothing of the text: in the first block
            the halves of guidance still are one and the same.
    """
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table
    x = x + gate_1 * attention(mx.fast.layer_norm(x, scale_1, shift_1, block.eps))
    if copies > 1:
        x = mx.concatenate([x] * copies)
    read, start = [], 0
    for text, count in zip(texts, rows, strict=True):
        part = x[start : start + count]
        start += count
        folded = part.reshape(text.contexts, -1, x.shape[-1])  # queries of one text side by side
        read.append(text.attend(block.attn2, folded).reshape(part.shape))
    x = read[0] if len(read) == 1 else mx.concatenate(read)
    y = mx.fast.layer_norm(x, scale_2, shift_2, block.eps).reshape(-1, *size, x.shape[-1])
    return x + gate_2 * block.ff(y).reshape(x.shape)
