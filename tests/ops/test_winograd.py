"""Winograd: ours in float32, and what Metal's in half precision would cost."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mobileo_mlx.models.dc_ae import DCAEConfig, Decoder, Encoder
from mobileo_mlx.ops import backend
from mobileo_mlx.ops.conv import Conv2d, UpsampledConv2d
from mobileo_mlx.ops.cpu import winograd


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (9, 14)])
def test_it_is_the_convolution(size: tuple[int, int]) -> None:
    x, weight = mx.random.normal((2, *size, 24)), mx.random.normal((20, 3, 3, 24))
    expected = mx.conv2d(x, weight, padding=1)
    y = winograd.convolve(mx.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)]), winograd.transform(weight))
    assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def test_upsampling_leaves_out_products_that_are_zero() -> None:
    phases = winograd.transform_upsampling(mx.random.normal((8, 3, 3, 8)))
    assert [phase[0].shape for phase in phases] == [(5, 5, 8, 8)] * 4


def _metal_takes_winograd(conv: nn.Conv2d, batch: int, height: int, width: int) -> bool:
    """The rule of MLX 0.32's Metal backend (backend/metal/conv.cpp) for a convolution without `flip`."""
    dim_out, kernel_height, kernel_width, dim_in = conv.weight.shape
    return (
        (kernel_height, kernel_width) == (3, 3)
        and tuple(conv.stride) == (1, 1)
        and conv.groups == 1
        and dim_in % 32 == 0
        and dim_out % 32 == 0
        and batch * height * width >= 4096
        and dim_in + dim_out >= 256
    )


def _convolutions(network: Decoder | Encoder, first: int, side: int) -> Iterator[tuple[str, nn.Conv2d, int]]:
    """Every dense convolution of a network, by name, with the side of its output for an image of `side` pixels."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            parts = name.split(".")
            level = int(parts[1]) if parts[0] in ("down_blocks", "up_blocks") else first if "in" in name else None
            yield name, module, side >> (level if level is not None else 5 - first)


@pytest.mark.parametrize("pixels", [512, 1024])
def test_no_convolution_of_the_real_autoencoder_meets_metals_winograd(
    monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """In half precision whatever Metal would do by Winograd has to be given to it with `flip`.

    Nothing is computed: weights are never evaluated, and the backend is only told to be a GPU.
    """
    flips: list[bool] = []
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(mx, "conv_general", lambda x, *_, flip=False, **__: flips.append(flip) or x)
    monkeypatch.setattr(mx, "conv2d", lambda x, *_, **__: flips.append(False) or x)
    at_risk = 0
    for network, first in ((Decoder(DCAEConfig()), 5), (Encoder(DCAEConfig()), 0)):
        network.set_dtype(mx.float16)
        for name, module, side in _convolutions(network, first, pixels):
            assert isinstance(module, Conv2d), f"{name} knows nothing of Metal"
            if isinstance(module, UpsampledConv2d):
                continue  # 2x2, see test_upsampling_is_by_2x2_kernels
            if _metal_takes_winograd(module, 1, side, side):
                at_risk += 1
                flips.clear()
                module.eval()(mx.zeros((1, 8, 8, module.weight.shape[-1]), mx.float16))
                assert flips == [True], name
    assert at_risk == 30  # two in each residual block


def test_upsampling_is_by_2x2_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    convolve = mx.conv2d
    monkeypatch.setattr(mx, "conv2d", lambda x, w, *a, **k: shapes.append(w.shape) or convolve(x, w, *a, **k))
    UpsampledConv2d(4, 8)(mx.zeros((1, 3, 3, 4)))
    assert shapes == [(8, 2, 2, 4)] * 4


def test_what_half_precision_winograd_would_cost() -> None:
    """Metal's F(6x6, 3x3), emulated: every stored array is rounded to float16, as in its three kernels."""
    rng = np.random.default_rng(0)
    side, dim = 24, 64
    x = rng.standard_normal((side, side, dim)).astype(np.float16)
    weight = (rng.standard_normal((dim, 3, 3, dim)) / (9 * dim) ** 0.5).astype(np.float16)
    exact = _direct(x.astype(np.float64), weight.astype(np.float64))
    direct = np.array(mx.conv2d(mx.array(x)[None], mx.array(weight), padding=1)[0])
    by_winograd = _winograd_6x6(x, weight)
    errors = [np.sqrt(np.mean((y.astype(np.float64) - exact) ** 2) / np.mean(exact**2)) for y in (direct, by_winograd)]
    assert errors[0] < 3e-4
    assert errors[1] > 10 * errors[0]
    # The same emulation without rounding is right: it is the precision that fails, not the emulator.
    assert np.allclose(_winograd_6x6(x, weight, np.float64), exact, atol=1e-8)


def _direct(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    height, width, _ = x.shape
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    return sum(padded[i : i + height, j : j + width] @ weight[:, i, j].T for i in range(3) for j in range(3))


def _winograd_6x6(x: np.ndarray, weight: np.ndarray, stored: type = np.float16) -> np.ndarray:
    points = (0, 1, -1, 2, -2, 0.5, -0.5)

    def powers(count: int) -> np.ndarray:
        return np.array([[p**j for j in range(count)] for p in points] + [[0.0] * (count - 1) + [1.0]])

    a, g, b = powers(6), powers(3), np.linalg.inv(powers(8))
    scale = np.abs(b).max(axis=0)  # as in the usual tables: integers and small fractions
    b, g = b / scale, g * scale[:, None]
    height, width, _ = x.shape
    taps = np.einsum("pi,oijc,qj->pqco", g, weight.astype(np.float64), g).astype(stored)
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)]).astype(np.float64)
    out = np.empty((height, width, weight.shape[0]))
    for i in range(0, height, 6):
        for j in range(0, width, 6):
            values = np.einsum("ip,ijc,jq->pqc", b, padded[i : i + 8, j : j + 8], b).astype(stored)
            products = np.einsum("pqc,pqco->pqo", values.astype(np.float64), taps.astype(np.float64)).astype(stored)
            out[i : i + 6, j : j + 6] = np.einsum("pi,pqo,qj->ijo", a, products.astype(np.float64), a)
    return out.astype(stored)
