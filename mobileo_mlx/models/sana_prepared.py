"""SANA for all the steps of one drawing: what they share is computed once, and each step does less work.

`SanaTransformer.__call__` gives each row a timestep and a text of its own. Here all rows of a step have the same
timestep, so that a modulated norm is a norm with weight and bias; timestep embeddings and modulations are computed for
all steps at once; and the texts are prepared (see `sana_cross_attention`). The velocity is the same up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..ops import backend, forms
from .sana import BlockText, SanaTransformer, TransformerBlock
from .sana_cross_attention import TextInput, prepare_text_kv

RunBlock = Callable[[mx.array, mx.array, Sequence[BlockText], tuple[int, int]], mx.array]  # as a TransformerBlock


class PreparedSana:
    """The transformer with all that the steps of one drawing have in common.

    Args:
        dit: the network, in evaluation mode.
        timesteps: (S,) of all steps, 0 to 1000.
        text: what the rows read.
        unconditional: what the other half of the rows reads in a step with guidance.
        donate: whether the network is used for nothing else: projections that no step reads any more, up to a quarter
            of its weights, are then freed block by block. By default it is not changed.
    """

    def __init__(
        self,
        dit: SanaTransformer,
        timesteps: mx.array,
        text: TextInput,
        unconditional: TextInput | None = None,
        *,
        donate: bool = False,
    ):
        self._dit = dit
        self._dtype = dit.dtype
        self._tables = dit.tables()
        self._timesteps = dit.time_embed(timesteps, self._dtype)  # modulation (S, 6 dim) and embedding (S, dim)
        mx.eval(self._tables, self._timesteps)
        texts = [text] if unconditional is None else [unconditional, text]
        self._texts = prepare_text_kv(dit, texts, donate=donate)  # by block
        # On a CPU kernels of several operations lose more, vector instructions, than they save.
        default = "plain" if backend.on_cpu() else "compiled"
        form = forms.chosen("dit_block", block_key(dit), default)
        blocks: list[RunBlock] = list(dit.transformer_blocks)
        self._blocks = compile_blocks(dit.transformer_blocks) if form == "compiled" else blocks

    def __call__(self, step: int, latents: mx.array, *, guided: bool) -> mx.array:
        """The velocity at a step, 0 to S - 1, for one row or two of each of the latents.

        Args:
            latents: (B, h, w, in_channels), of any dtype.
            guided: whether rows that read the unconditional text come before those that read the text.

        Returns:
            (B or 2 B, h, w, out_channels).
        """
        dit, patch = self._dit, self._dit.config.patch_size
        size = (latents.shape[1] // patch, latents.shape[2] // patch)
        x = dit.patch_embed(latents.astype(self._dtype))
        if guided:
            x = mx.concatenate([x, x])
        modulations, output = dit.modulations(self._tables, *(rows[step : step + 1] for rows in self._timesteps))
        for block, modulation, texts in zip(self._blocks, modulations, self._texts, strict=True):
            x = block(x, modulation, texts if guided else texts[-1:], size)
        return dit.velocity(x, output, size)


def block_key(dit: SanaTransformer) -> str:
    """What the form of the blocks is chosen by."""
    return f"{dit.config.dim} {forms.dtype_name(dit.dtype)}"


def compile_blocks(blocks: Sequence[TransformerBlock]) -> list[RunBlock]:
    """The blocks by `mx.compile`, traced once for all that differ in the values of their arrays alone.

    Parameters are inputs of the compiled function, as all else is. While it is traced, the first block of its kind
    stands for all: its parameters are the tracer's, and then its own again.

    Tracing again for each drawing takes 1 ms with the blocks of the 0.5B model; kernels are found again by their names.
    """
    compiled: list[tuple[Any, Callable[..., mx.array]]] = []
    runs: list[RunBlock] = []
    for block in blocks:
        # Layers may differ in more than arrays: quantized in other bits, or with an update beside them.
        kind = [(name, type(layer), vars(layer)) for name, layer in block.named_modules()]
        function = next((function for other, function in compiled if other == kind), None)
        if function is None:
            function = mx.compile(_of_parameters(block))
            compiled.append((kind, function))
        runs.append(functools.partial(function, block.parameters()))
    return runs


def _of_parameters(block: TransformerBlock) -> Callable[..., mx.array]:
    def run(parameters: dict, *arguments: Any) -> mx.array:
        own = block.parameters()
        block.update(parameters)
        try:
            return block(*arguments)
        finally:
            block.update(own)

    return run
