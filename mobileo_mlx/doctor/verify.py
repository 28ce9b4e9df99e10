"""Every component in every precision that it would take, on this device, against float32 on the CPU.

The reference is the network's plain form, whose blocks are traced; on the device each block then gets the same
arguments, so that an error shows where it is made, and the whole network is run as the pipeline runs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..checkpoints import precision
from ..checkpoints.modules import get_submodule
from . import paths
from .comparison import BUDGETS, Comparison, compare, rounding
from .sources import Source
from .trace import BlockCall, plain, trace


@dataclass(frozen=True)
class ComponentReport:
    """A component in one precision.

    Attributes:
        dtype: its name.
        default: whether the table of `checkpoints.precision` names it first for this device.
        blocks: in the order in which they run.
        whole: what production makes.
        seconds: on the device.
    """

    component: str
    dtype: str
    default: bool
    blocks: tuple[Comparison, ...]
    whole: tuple[Comparison, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.failure is None

    @property
    def failure(self) -> Comparison | None:
        """Where the error begins: the first block that fails, else the first result of the network that does."""
        return next((one for one in (*self.blocks, *self.whole) if not one.passed), None)

    @property
    def peak(self) -> Comparison:
        """The block with the largest absolute value."""
        return max(self.blocks, key=lambda block: block.peak or 0.0)


@dataclass(frozen=True)
class Stage:
    """What is computed next, for whoever waits."""

    component: str
    text: str


def verify(source: Source, *, dtype: mx.Dtype | None = None) -> Iterator[Stage | ComponentReport]:
    """Compares the components one by one, so that no two are in memory at once.

    Args:
        source: where the networks come from.
        dtype: the one precision to try; by default all that the component may take on this device.
    """
    given = paths.first_inputs(source)
    for component in paths.ORDER:
        if component not in source.components:
            continue  # a head that is tied to the embedding
        table = precision.candidates(component, source.stored_dtype(component))
        dtypes = table if dtype is None else (dtype,)
        yield Stage(component, "float32 on the CPU")
        network, calls, expected = _reference(source, component, given)
        # float32 first: it has the weights of the reference.
        for one in sorted(dtypes, key=lambda dtype: dtype != mx.float32):
            yield Stage(component, f"{precision.dtype_name(one)} on the device")
            if one != mx.float32:
                del network
                network = source.network(component, one)
            yield _compare(source, component, network.eval(), one, calls, given, expected, default=one == table[0])
        del network, calls
        given |= expected
        if component == "vae_encoder" and not source.trained:
            given["latents"] = given["other_noise"] / source.config.vae.scaling_factor
        mx.clear_cache()


def _reference(source: Source, component: str, given: paths.Arrays) -> tuple[nn.Module, list[BlockCall], paths.Arrays]:
    expected: paths.Arrays = {}
    network = source.network(component, mx.float32)

    def run() -> None:
        expected.update(paths.run(component, network, source.config, given, production=False))
        mx.eval(expected)

    with mx.stream(mx.cpu):
        calls = trace(plain(network), lambda path: paths.is_block(component, path), run)
    return network, calls, expected


def _compare(
    source: Source,
    component: str,
    network: nn.Module,
    dtype: mx.Dtype,
    calls: Sequence[BlockCall],
    given: paths.Arrays,
    expected: paths.Arrays,
    *,
    default: bool,
) -> ComponentReport:
    block_budget, whole_budget = BUDGETS[rounding(dtype)]
    begin = time.perf_counter()
    blocks = []
    for call in calls:
        args, kwargs = _cast(call.arguments, dtype)
        result = get_submodule(network, call.name)(*args, **kwargs)
        blocks.append(compare(call.name, result, call.result, block_budget, call))
    found = paths.run(component, network, source.config, _cast(given, dtype), production=True)
    whole = [compare(name, found[name], expected[name], whole_budget) for name in found]
    seconds = time.perf_counter() - begin
    return ComponentReport(component, precision.dtype_name(dtype), default, tuple(blocks), tuple(whole), seconds)


def _cast(tree: Any, dtype: mx.Dtype) -> Any:
    """Floating-point arrays, and the dtypes among arguments, as of a network that computes in this dtype."""

    def cast(leaf: object) -> object:
        if isinstance(leaf, mx.array):
            return leaf.astype(dtype) if mx.issubdtype(leaf.dtype, mx.floating) else leaf
        return dtype if isinstance(leaf, mx.Dtype) else leaf

    return tree_map(cast, tree)
