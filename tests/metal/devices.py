"""The two sides of a comparison: what is tested computes on the GPU, the reference in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from processes.sitecustomize import device

from benchmarks.synthetic import official_config, tiny_config
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.checkpoints.random_model import random_parameter
from mobileo_mlx.models.mobileo import MobileOConfig, build
from mobileo_mlx.ops import backend

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
HALVES = ("float16", "bfloat16")


@contextmanager
def cpu() -> Iterator[None]:
    """The CPU, and the forms of a CPU."""
    before = mx.default_device(), backend.backend
    mx.set_default_device(mx.cpu)
    backend.backend = lambda: "cpu"
    try:
        yield
    finally:
        mx.set_default_device(before[0])
        backend.backend = before[1]


def config() -> MobileOConfig:
    """The published widths, which decide the kernels that run, with few layers; small where no GPU is there."""
    if device() != "gpu":
        return tiny_config()
    wide = official_config("0.5b")
    ones = (1,) * 6
    return replace(
        wide,
        vision_tower=replace(wide.vision_tower, layers=(1,) * 5),
        llm=replace(wide.llm, num_hidden_layers=3, vocab_size=512),
        dit=replace(wide.dit, num_layers=2),
        vae=replace(wide.vae, encoder_layers_per_block=ones, decoder_layers_per_block=ones),
    )


def network(component: str, dims: MobileOConfig, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """A component with random weights, the same ones for every dtype before they are rounded."""
    with cpu():
        module = build(component, dims)
        weights = {}
        for name, array in named_parameters(module).items():
            weights[name] = random_parameter(0, component, name, array.shape, published=True).astype(dtype)
        mx.eval(weights)
    return module.load_weights(list(weights.items()))


def normal(*shape: int, seed: int = 0) -> mx.array:
    """float32, standard normal."""
    with cpu():
        x = mx.random.normal(shape, key=mx.random.key(seed))
        mx.eval(x)
    return x


def on_cpu(compute: Callable[[], object]) -> list[mx.array]:
    """The arrays of what is computed on the CPU, in order."""
    with cpu():
        return computed(compute)


def computed(compute: Callable[[], object]) -> list[mx.array]:
    """The arrays of what is computed, in order."""
    arrays = [array for _, array in tree_flatten(compute())]
    mx.eval(arrays)
    return arrays


def largest_error(y: mx.array, expected: mx.array) -> float:
    """Of an element, relative to the largest value."""
    with cpu():
        return (mx.abs(y.astype(mx.float32) - expected).max() / mx.abs(expected).max()).item()


def rms_error(y: mx.array, expected: mx.array) -> float:
    """Root mean square of the error, relative to that of the values."""
    with cpu():
        return mx.sqrt(mx.square(y.astype(mx.float32) - expected).sum() / mx.square(expected).sum()).item()
