"""Every component in every precision that it would take, on this device, against float32 on the CPU.

The reference is the network's plain form, whose blocks are traced. On the device each block gets the same arguments, so
that an error shows where it is made; then the whole network is run as the pipeline runs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..checkpoints import precision
from ..checkpoints.modules import get_submodule
from ..errors import NotFiniteError
from ..ops import device_settings
from ..ops.finite import all_finite
from . import paths
from .comparison import BUDGETS, Comparison, compare, rounding
from .sources import Source
from .trace import BlockCall, plain, trace


@dataclass(frozen=True)
class ComponentReport:
    """A component in one precision.

    Attributes:
        dtype: its name.
        rank: its place among those that the component may take on this device: 0 is the default. None: not among them.
        blocks: in the order in which they run.
        whole: what production makes.
        seconds: on the device.
    """

    component: str
    dtype: str
    rank: int | None
    blocks: tuple[Comparison, ...]
    whole: tuple[Comparison, ...]
    seconds: float

    @property
    def failure(self) -> Comparison | None:
        """Where the error begins: the first block that fails, else the first result of the network that does."""
        return next((one for one in (*self.blocks, *self.whole) if not one.passed), None)

    @property
    def peak(self) -> Comparison:
        """The block with the largest absolute value in float32."""
        return max(self.blocks, key=lambda block: block.peak or 0.0)

    def improves_on(self, failure: Comparison) -> bool:
        """Whether this precision passes and is closer to the reference where another one fails.

        A coarser one may also pass because more is allowed in it, and is wrong in the same way.
        """
        same = next((one for one in (*self.blocks, *self.whole) if one.name == failure.name), failure)
        return self.failure is None and not failure.rms <= same.rms  # True where it is not a number


@dataclass(frozen=True)
class Stage:
    """What is computed next, for whoever waits."""

    component: str
    text: str


@dataclass(frozen=True)
class Conclusion:
    """What follows for a component.

    Attributes:
        default: the precision that the table names for this device.
        failure: where the default's error begins; None where it passed.
        instead: the best precision that passes where the default fails; None where it passed or none does.
    """

    component: str
    default: str
    failure: Comparison | None
    instead: str | None


def verify(source: Source, *, dtype: mx.Dtype | None = None) -> Iterator[Stage | ComponentReport]:
    """Compares the components one by one, so that no two are in memory at once.

    Args:
        source: where the networks come from.
        dtype: the one precision to try; by default all that the component may take on this device.

    Raises:
        NotFiniteError: what there is to compare with has NaN or infinity, as where the weights have.
    """
    given = paths.first_inputs(source)
    for component in paths.ORDER:
        if component not in source.components:
            continue  # a head that is tied to the embedding
        table = precision.candidates(component, source.stored_dtype(component))
        yield Stage(component, "float32 on the CPU")
        network, calls, expected = _reference(source, component, given)
        # float32 first: it has the weights of the reference.
        for one in sorted(table if dtype is None else (dtype,), key=lambda dtype: dtype != mx.float32):
            yield Stage(component, f"{precision.dtype_name(one)} on the device")
            if one != mx.float32:
                del network
                network = source.network(component, one)
            rank = table.index(one) if one in table else None
            yield _report(source, component, network.eval(), one, rank, calls, given, expected)
        del network, calls
        given |= expected
        if component == "vae_encoder" and not source.trained:
            given["latents"] = given["other_noise"] / source.config.vae.scaling_factor
        mx.clear_cache()


def conclude(reports: Iterable[ComponentReport]) -> list[Conclusion]:
    """For each component whose default was tried, whether it holds and what to take instead."""
    by_component: dict[str, list[ComponentReport]] = {}
    for report in reports:
        if report.rank is not None:
            by_component.setdefault(report.component, []).append(report)
    found = []
    for component, tried in by_component.items():
        tried.sort(key=lambda report: report.rank or 0)
        first = tried[0]
        if first.rank == 0:
            failure = first.failure
            instead = next((report.dtype for report in tried[1:] if failure and report.improves_on(failure)), None)
            found.append(Conclusion(component, first.dtype, failure, instead))
    return found


def store(conclusions: Iterable[Conclusion], *, trained: bool = True) -> Path | None:
    """Keeps the precision to take where a default failed, and forgets what was kept where it passes.

    Args:
        trained: whether the weights were. What random ones pass says nothing of a range that trained ones have left, so
            that they do not make anything forgotten.

    Returns:
        the file, or None where nothing has changed.

    Raises:
        OutputError: it can't be written.
    """
    settings = device_settings.current()
    kept = dict(settings.precision)
    for conclusion in conclusions:
        if conclusion.failure is None and trained:
            kept.pop(conclusion.component, None)
        elif conclusion.failure is not None and conclusion.instead is not None:
            kept[conclusion.component] = conclusion.instead
    if kept == dict(settings.precision):
        return None
    return device_settings.save(device_settings.DeviceSettings(kept, settings.forms))


def _reference(source: Source, component: str, given: paths.Arrays) -> tuple[nn.Module, list[BlockCall], paths.Arrays]:
    """The network in float32, what its blocks take and give, and what it makes."""
    expected: paths.Arrays = {}
    network = source.network(component, mx.float32)

    def run() -> None:
        for name, make in paths.run(component, plain(network), source.config, given, production=False).items():
            expected[name] = make()
            mx.eval(expected[name])

    with mx.stream(mx.cpu):
        calls = trace(network, partial(paths.is_block, component), run)
        if not all_finite(*expected.values()).item():
            raise NotFiniteError(component, source.fault(component), "float32")
    return network, calls, expected


def _report(
    source: Source,
    component: str,
    network: nn.Module,
    dtype: mx.Dtype,
    rank: int | None,
    calls: Sequence[BlockCall],
    given: paths.Arrays,
    expected: paths.Arrays,
) -> ComponentReport:
    of_blocks, of_whole = BUDGETS[rounding(dtype)]
    begin = time.perf_counter()

    def block(call: BlockCall) -> mx.array:
        args, kwargs = _cast(call.arguments, dtype)
        return get_submodule(network, call.name)(*args, **kwargs)

    blocks = [compare(call.name, partial(block, call), call.result, of_blocks, call) for call in calls]
    found = paths.run(component, network, source.config, _cast(given, dtype), production=True)
    whole = [compare(name, found[name], array, of_whole) for name, array in expected.items()]
    seconds = time.perf_counter() - begin
    return ComponentReport(component, precision.dtype_name(dtype), rank, tuple(blocks), tuple(whole), seconds)


def _cast(tree: Any, dtype: mx.Dtype) -> Any:
    """Floating-point arrays, and the dtypes among arguments, as of a network that computes in this dtype."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, mx.array):
            return leaf.astype(dtype) if mx.issubdtype(leaf.dtype, mx.floating) else leaf
        return dtype if isinstance(leaf, mx.Dtype) else leaf

    return tree_map(cast, tree)
