"""What the comparisons with PyTorch share: random weights, and the way from theirs to ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

torch.set_num_threads(1)  # for models this small, threads cost more than they save

TOLERANCE = 1e-5  # max |a - b| / max |reference|, float32


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter a random value that matters: no bias is zero, no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "table" not in name:
                value *= parameter[0].numel() ** -0.5
            else:
                value *= 0.2
                value += float("norm" in name and name.endswith("weight"))
            parameter.copy_(value)
    return module.eval()


def ported(
    module: nn.Module, state: Mapping[str, torch.Tensor], sanitize: Callable[[dict[str, mx.array]], dict[str, mx.array]]
) -> nn.Module:
    """Our module with the weights of theirs; every name and shape has to fit."""
    weights = sanitize({name: mx.array(tensor.numpy()) for name, tensor in state.items()})
    module.load_weights(list(weights.items()), strict=True)
    return module.eval()


def part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_close(ours: Any, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    a, b = np.array(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    assert a.shape == b.shape
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error <= tolerance, f"{error:.1e} is above {tolerance:.0e}"


def nhwc(x: np.ndarray) -> mx.array:
    return mx.array(x).transpose(0, 2, 3, 1)


def nchw(x: mx.array) -> mx.array:
    return x.transpose(0, 3, 1, 2)
