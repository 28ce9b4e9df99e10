"""Every component in every precision that it would take, on this device, against float32 on the CPU.

The reference is the network's plain form, whose blocks are traced; on the device each block then gets the same
arguments, so that an error shows where it is made, and the whole network is run as the pipeline runs it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..checkpoints import precision
from ..checkpoints.modules import get_submodule
from ..ops import backend, device_settings
from . import paths
from .sources import Source
from .trace import BlockCall, plain, trace

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Budget:
    """The largest relative errors that pass: root mean square, and largest error / largest value."""

    rms: float
    largest: float


# Of a block that gets exact arguments, and of a whole network. Measured on a CPU, with random weights of the published
# size and with `tiny`, were at most a quarter of these; see docs/mac.md.
_BUDGETS = {
    "float32": (Budget(1e-5, 1e-4), Budget(1e-4, 1e-3)),
    "TF32": (Budget(5e-3, 2e-2), Budget(2e-2, 1e-1)),
    "float16": (Budget(5e-3, 2e-2), Budget(2e-2, 1e-1)),
    "bfloat16": (Budget(4e-2, 1e-1), Budget(1e-1, 4e-1)),
}
_TF32_CHIP = re.compile(r"Apple (M([5-9]|\d\d)|A(19|[2-9]\d))\b")


@dataclass(frozen=True)
class Comparison:
    """Of a block or a whole network, with the reference.

    Attributes:
        name: the block's path, or what the network makes.
        rms, largest: relative errors, as in `Budget`; not a number where the result is not finite.
        passed: whether they are within the budget.
        peak: the largest absolute value in the reference inside of a block; None of a whole network.
        peak_layer: the layer that takes or gives it.
    """

    name: str
    rms: float
    largest: float
    passed: bool
    peak: float | None = None
    peak_layer: str = ""


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
    block_budget, whole_budget = _BUDGETS[_rounding(dtype)]
    begin = time.perf_counter()
    blocks = []
    for call in calls:
        args, kwargs = _cast(call.arguments, dtype)
        result = get_submodule(network, call.name)(*args, **kwargs)
        blocks.append(_comparison(call.name, result, call.result, block_budget, call))
    found = paths.run(component, network, source.config, _cast(given, dtype), production=True)
    whole = [_comparison(name, found[name], expected[name], whole_budget) for name in found]
    seconds = time.perf_counter() - begin
    return ComponentReport(
        component, precision.dtype_name(dtype), default, tuple(blocks), tuple(whole), seconds
    )


def _cast(tree: object, dtype: mx.Dtype) -> object:
    """Floating-point arrays, and the dtypes among arguments, as of a network that computes in this dtype."""

    def cast(leaf: object) -> object:
        if isinstance(leaf, mx.array):
            return leaf.astype(dtype) if mx.issubdtype(leaf.dtype, mx.floating) else leaf
        return dtype if isinstance(leaf, mx.Dtype) else leaf

    return tree_map(cast, tree)


def _comparison(
    name: str, result: mx.array, expected: mx.array, budget: Budget, call: BlockCall | None = None
) -> Comparison:
    mx.eval(result)
    with mx.stream(mx.cpu):
        error = result.astype(mx.float32) - expected
        rms = mx.sqrt(mx.square(error).mean() / mx.square(expected).mean()).item()
        largest = (mx.abs(error).max() / mx.abs(expected).max()).item()
    passed = rms <= budget.rms and largest <= budget.largest  # False where one is not a number
    if call is None:
        return Comparison(name, rms, largest, passed)
    return Comparison(name, rms, largest, passed, call.peak, call.peak_layer)


def _rounding(dtype: mx.Dtype) -> str:
    """By which budget a dtype is judged: MLX computes products of float32 in TF32 on some devices."""
    name = precision.dtype_name(dtype)
    if name != "float32" or os.environ.get("MLX_ENABLE_TF32", "1") == "0" or backend.on_cpu():
        return name
    tf32 = backend.backend() == "cuda" or _TF32_CHIP.match(backend.chip_name())
    return "TF32" if tf32 else name
