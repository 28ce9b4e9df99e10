"""SANA for all the steps of one drawing: what they share is computed once, and each step does less work.

`SanaTransformer.__call__` is the plain form, which training uses and which is compared with the reference. This one
gives the same velocity up to rounding, and needs that all rows of a step have the same timestep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .sana import OUTPUT_NORM_EPS, CrossAttention, SanaTransformer, TransformerBlock, text_bias


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
class ProjectedText:
    """A text for one block as keys and values: `CrossAttention` as it is."""

    keys: mx.array  # (R, heads, N, head_dim)
    values: mx.array
    bias: mx.array | None  # (R, 1, 1, N)

    def attend(self, attention: CrossAttention, x: mx.array) -> mx.array:
        return x + attention(x, self.keys, self.values, self.bias)


@dataclass(frozen=True)
class AbsorbedText:
    """A text for one block together with the block's projections of queries and outputs; see `absorbed`."""

    a: mx.array  # (R, heads N, dim)
    a_bias: mx.array  # (R, 1, heads N)
    b: mx.array  # (R, heads N, dim)

    def attend(self, attention: CrossAttention, x: mx.array) -> mx.array:
        scores = mx.addmm(self.a_bias, x, self.a.swapaxes(-1, -2))  # (R, M, heads N)
        grouped = scores.reshape(*scores.shape[:-1], attention.heads, -1)
        weights = mx.softmax(grouped, axis=-1, precise=True).reshape(scores.shape)
        return mx.addmm(x, weights, self.b)


def absorbed(attention: CrossAttention, keys: mx.array, values: mx.array, bias: mx.array | None) -> AbsorbedText | None:
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
    return AbsorbedText(
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


class PreparedSteps:
    """The transformer with all that the steps of one drawing have in common.

    Args:
        dit: the network, in evaluation mode.
        texts: what the rows of a step read, in order. Each of them stands for the same latents.
        halves: how many times a step's latents are taken, one after the other, to make its rows: 2 with guidance.
        timesteps: (S,) of all steps, 0 to 1000.
        latents: the shape of a step's latents, (B, h, w, in_channels).

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
        self._texts: list[list[ProjectedText | AbsorbedText]] = []
        for index, block in enumerate(dit.transformer_blocks):
            readable: list[ProjectedText | AbsorbedText] = []
            for projection, text, bias, count in zip(projected, texts, biases, queries, strict=True):
                count //= text.states.shape[0]
                readable.append(_readable(block.attn2, projection, bias, count))
            # Weights, too: a compiled function would read those that are still on the disk again with each call.
            mx.eval(block.parameters(), [vars(text) for text in readable])
            self._texts.append(readable)
            self._blocks.append(self._step(block, readable, self._rows, halves if index == 0 else 1))

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
        self, block: TransformerBlock, texts: list[ProjectedText | AbsorbedText], rows: list[int], copies: int
    ) -> Callable[[mx.array, mx.array], mx.array]:
        def run(x: mx.array, table: mx.array) -> mx.array:
            return run_block(block, x, table, texts, rows, self._size, copies)

        return mx.compile(run)

    def alone(self, which: int) -> PreparedSteps:
        """The same for the rows of text `which` alone, once for each of the latents. All that is prepared is shared."""
        one = copy.copy(self)
        one._rows = [self._batch]
        one._texts = [[texts[which]] for texts in self._texts]
        blocks = zip(self._dit.transformer_blocks, one._texts, strict=True)
        one._blocks = [self._step(block, texts, one._rows, 1) for block, texts in blocks]
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


def _readable(
    attention: CrossAttention, text: mx.array, bias: mx.array | None, queries: int
) -> ProjectedText | AbsorbedText:
    """A text as a block's cross-attention reads it, in the form that takes the fewest multiplications."""
    keys, values = attention.keys_values(text)
    _, heads, count, width = keys.shape
    if absorbing_pays(text.shape[-1], heads * width, heads, count, queries):
        found = absorbed(attention, keys, values, bias)
        if found is not None:
            return found
    return ProjectedText(keys, values, bias)


def run_block(
    block: TransformerBlock,
    x: mx.array,
    table: mx.array,
    texts: Sequence[ProjectedText | AbsorbedText],
    rows: Sequence[int],
    size: tuple[int, int],
    copies: int = 1,
) -> mx.array:
    """A block whose rows have one timestep, so that a modulated norm is a norm with weight and bias.

    Args:
        block: the block.
        x: (B, T, dim).
        table: shift, 1 + scale and gate before the self-attention, then before the convolutions, (6, dim).
        texts: what the rows read.
        rows: how many read each of them.
        size: of the latents in patches.
        copies: how often x is repeated after the self-attention, which sees nothing of the text: in the first block
            the halves of guidance still are one and the same.
    """
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table
    x = x + gate_1 * block.attn1(mx.fast.layer_norm(x, scale_1, shift_1, block.eps))
    if copies > 1:
        x = mx.concatenate([x] * copies)
    read, start = [], 0
    for text, count in zip(texts, rows, strict=True):
        part = x[start : start + count]
        start += count
        folded = part.reshape(_contexts(text), -1, x.shape[-1])  # queries of one text side by side
        read.append(text.attend(block.attn2, folded).reshape(part.shape))
    x = read[0] if len(read) == 1 else mx.concatenate(read)
    y = mx.fast.layer_norm(x, scale_2, shift_2, block.eps).reshape(-1, *size, x.shape[-1])
    return x + gate_2 * block.ff(y).reshape(x.shape)


def _contexts(text: ProjectedText | AbsorbedText) -> int:
    return (text.a if isinstance(text, AbsorbedText) else text.keys).shape[0]
