"""The operations of the production code, read off its graph.

`trace` runs code on weights that are only placeholders and exports the graph that results (`mx.export_function` with a
callback); what would wait for a value is replaced for the duration: evaluating does nothing, and the likeliest token is
always the same one. `operations` looks at every graph that is about to be evaluated, compiled parts fused, and reads
the names of its operations (`mx.export_to_dot`).
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten

from mobileo_mlx import MobileO
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig
from mobileo_mlx.ops import backend as backend_module
from mobileo_mlx.ops.cpu import fast_math

from .synthetic import random_weights, synthetic_model

Shape = tuple[int, ...]
Job = Callable[[MobileO], Iterable[mx.array]]

BACKENDS = ("metal", "cpu")

# They change how an array is looked at, or make a constant, and start no kernel of their own. (A reshape of a
# transposed array is a copy; the graph does not say which ones are.)
VIEWS = frozenset({
    "Arange", "AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Full",
    "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View",
})  # fmt: skip
_PRODUCTS = frozenset(
    ("Matmul", "AddMM", "Convolution", "QuantizedMatmul", "GatherMM", "GatherQMM", "ScaledDotProductAttention")
)
_WEIGHT_PASSES = VIEWS | {"AsType", "Copy", "Quantize", "Dequantize"}
_WEIGHTS_JOINED = {"Concatenate", "Pad"}  # of which one larger weight comes


@dataclass(frozen=True)
class Product:
    """One matrix product, convolution or attention.

    Attributes:
        flops: two for each multiplication with its addition.
        component: whose weight it reads, None where it reads none.
        weights: elements of that weight.
        activations: elements that it reads and writes besides; attention's scores do not count, as they
            stay on the chip where attention is one kernel.
    """

    kind: str
    shapes: tuple[Shape, ...]
    out: Shape
    flops: int
    component: str | None
    weights: int
    activations: int


@dataclass(frozen=True)
class Count:
    """What a piece of work consists of; `a - b` is what `a` does beyond `b`."""

    products: Counter[Product] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)  # by primitive, views left out
    readers: Counter[str] = field(default_factory=Counter)  # operations that read a component's weights

    @property
    def flops(self) -> int:
        return sum(n * product.flops for product, n in self.products.items())

    @property
    def activations(self) -> int:
        return sum(n * product.activations for product, n in self.products.items())

    def weights(self) -> dict[str, int]:
        """Elements of weights that are read, by component."""
        read: Counter[str] = Counter()
        for product, n in self.products.items():
            if product.component is not None:
                read[product.component] += n * product.weights
        return dict(read)

    def flops_of(self, component: str) -> int:
        return sum(n * p.flops for p, n in self.products.items() if p.component == component)

    def __sub__(self, other: Count) -> Count:
        return Count(self.products - other.products, self.operations - other.operations, self.readers - other.readers)


def trace(config: MobileOConfig, job: Job, *, backend: str = "metal", quantize: dict[str, int] | None = None) -> Count:
    """Counts what `job` does on a model of that configuration.

    Args:
        job: gets the model and returns arrays, all that counts among what they depend on. Answers are among them
            by themselves.
        backend: for which one the production code is to choose its forms; nothing runs on it.
    """
    shapes = {name: {key: a.shape for key, a in random_weights(name, config).items()} for name in COMPONENTS}
    flat = [(component, name) for component in COMPONENTS for name in shapes[component]]
    # Placeholders stand for them while tracing, so these are never computed.
    examples = [mx.zeros(shapes[component][name], mx.float16) for component, name in flat]
    nodes: list[dict[str, Any]] = []

    def run(*tracers: mx.array) -> list[mx.array]:
        given: dict[str, dict[str, mx.array]] = {name: {} for name in COMPONENTS}
        for (component, name), tracer in zip(flat, tracers, strict=True):
            given[component][name] = tracer
        with tracing_only(backend) as answers:
            model = synthetic_model(config, read=given.__getitem__, evaluate=False, dtype=mx.float16, quantize=quantize)
            return [*job(model), *answers]

    mx.disable_compile()  # a compiled kernel can't be exported; its operations can
    try:
        mx.export_function(nodes.append, run, *examples)
    finally:
        mx.enable_compile()
    return _counted(nodes, [component for component, _ in flat])


def operations(config: MobileOConfig, job: Job, *, backend: str = "metal") -> Counter[str]:
    """The operations that `job` starts, by primitive, views left out; a compiled kernel and a fast one count once.

    Here the work is done, on weights that are all the same, because what has been evaluated is what a compiled
    function may take as given; so this is for a few layers. Only what the code evaluates by itself is counted.
    """
    scalar, names = mx.zeros(()), Counter[str]()

    def read(component: str) -> dict[str, mx.array]:
        return {name: mx.broadcast_to(scalar, a.shape) for name, a in random_weights(component, config).items()}

    def observed(evaluate: Callable[..., None]) -> Callable[..., None]:
        def count(*trees: Any) -> None:
            text = io.StringIO()
            arrays: list[tuple[str, mx.array]] = tree_flatten(list(trees))  # type: ignore[assignment]
            mx.export_to_dot(text, *(array for _, array in arrays if isinstance(array, mx.array)))
            names.update(re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue()))
            evaluate(*trees)

        return count

    with (
        mock.patch.object(mx, "eval", observed(mx.eval)),
        mock.patch.object(mx, "async_eval", observed(mx.async_eval)),
        results_count_as_finite(),
        pretend_device(backend),
        _one_operation_each(),
    ):
        job(synthetic_model(config, read=read, dtype=mx.float32))
    return Counter({name: n for name, n in names.items() if name not in VIEWS})


@contextmanager
def tracing_only(backend: str) -> Iterator[list[mx.array]]:
    """Lets a graph grow from end to end: nothing is evaluated, and every token that is chosen is 0.

    Yields:
        the logits that tokens were chosen from.
    """
    logits: list[mx.array] = []

    def choose(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        logits.append(x)
        return mx.array(0)

    with (
        mock.patch.object(mx, "eval"),
        mock.patch.object(mx, "async_eval"),
        mock.patch.object(mx, "contiguous", lambda x, *options: x),  # a copy, and one that can't be exported
        mock.patch.object(mx, "argmax", choose),
        results_count_as_finite(),
        mock.patch.object(fast_math, "compiles", return_value=False),  # functions with a gradient of their own
        pretend_device(backend),
    ):
        yield logits


def results_count_as_finite() -> AbstractContextManager[Any]:
    """Spares results the question whether they are, which needs their values."""
    return mock.patch.object(mx, "isfinite", return_value=mx.array(True))


@contextmanager
def pretend_device(backend: str) -> Iterator[None]:
    """Lets the production code choose the forms of its operations as if it ran on that backend."""
    with mock.patch.object(backend_module, "backend", return_value=backend):
        yield


@contextmanager
def _one_operation_each() -> Iterator[None]:
    """Stand-ins for `mx.fast`, whose functions are several operations on a CPU and one on a GPU.

    Each is one `addmm`, which no compilation fuses with others, on views of all its inputs.
    """

    def joined(x: mx.array, *others: mx.array | None) -> mx.array:
        column, row = x[..., :1], x[..., :1, :]
        for i, other in enumerate(o for o in others if isinstance(o, mx.array)):
            corner = other[(slice(0, 1),) * other.ndim].reshape((1,) * x.ndim)
            if i % 2 == 0:
                column = mx.broadcast_to(corner, column.shape)
            else:
                row = mx.broadcast_to(corner, row.shape)
        return mx.addmm(x, column, row)

    def attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, **options: Any) -> mx.array:
        return joined(mx.broadcast_to(q[..., :1], (*q.shape[:-1], v.shape[-1])), k, v)

    with (
        mock.patch.object(mx.fast, "layer_norm", lambda x, weight, bias, eps, **options: joined(x, weight, bias)),
        mock.patch.object(mx.fast, "rms_norm", lambda x, weight, eps, **options: joined(x, weight)),
        mock.patch.object(mx.fast, "rope", lambda x, *args, **options: joined(x)),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", attention),
    ):
        yield


def _counted(nodes: list[dict[str, Any]], components: Sequence[str | None]) -> Count:
    """Counts the nodes of an export; `components` says of each of its inputs whose weight it is, if it is one."""
    inputs = next(node["inputs"] for node in nodes if node["type"] == "inputs")
    # The weights, and what is a view of one, by the name of the array: the component and the elements.
    weights = {
        name: (component, math.prod(shape))
        for (name, shape, _), component in zip(inputs, components, strict=True)
        if component is not None
    }
    primitives = [node for node in nodes if node["type"] == "primitive"]
    scores = {shape for node in primitives if node["name"] == "Softmax" for _, shape, _ in node["inputs"]}
    count = Count()
    for node in primitives:
        name, read = node["name"], [array for array, _, _ in node["inputs"]]
        owners = [weights[array] for array in read if array in weights]
        if name in _WEIGHTS_JOINED and owners and all(a in weights or not shape for a, shape, _ in node["inputs"]):
            weights |= {array: (owners[0][0], math.prod(shape)) for array, shape, _ in node["outputs"]}
        elif name in _WEIGHT_PASSES and owners and len(owners) == len(read):
            weights |= {array: owners[0] for array, _, _ in node["outputs"]}
        elif owners:
            count.readers.update({owner for owner, _ in owners})
        if name not in VIEWS:
            count.operations[name] += 1
        if name in _PRODUCTS:
            count.products[_product(node, weights, scores)] += 1
    return count


def _product(node: dict[str, Any], weights: Mapping[str, tuple[str, int]], scores: set[Shape]) -> Product:
    name, out = node["name"], node["outputs"][0][1]
    shapes = tuple(shape for _, shape, _ in node["inputs"])
    read = [weights[array] for array, _, _ in node["inputs"] if array in weights]
    component, elements = max(read, key=lambda weight: weight[1]) if read else (None, 0)
    # The addend of AddMM is its third input: a bias, or a residual that is read.
    moved = [shape for array, shape, _ in node["inputs"] if array not in weights and shape not in scores]
    moved += [] if out in scores else [out]
    return Product(name, shapes, out, _flops(name, shapes, out), component, elements, sum(map(math.prod, moved)))


def _flops(name: str, shapes: tuple[Shape, ...], out: Shape) -> int:
    if name == "Convolution":
        return 2 * math.prod(out) * math.prod(shapes[1][1:])  # weight (O, *kernel, I / groups)
    if name == "ScaledDotProductAttention":
        q, k, v = shapes[:3]
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    return 2 * math.prod(out) * shapes[0][-1]
