from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobileo_mlx.ops.cpu import channel_planes
from mobileo_mlx.ops.cpu.channel_planes import Planes, depthwise, feed_forward


def relative_error(y: mx.array, expected: mx.array) -> float:
    assert y.shape == expected.shape
    return mx.abs(y - expected).max().item() / mx.abs(expected).max().item()  # type: ignore[operator, return-value]


SIZES = [(16, 20), (9, 7), (3, 2), (1, 5)]  # in tiles and not, and smaller than a kernel


@pytest.mark.parametrize("size", SIZES)
def test_planes_are_the_map(size: tuple[int, int]) -> None:
    x = mx.random.normal((2, *size, 3))
    assert mx.array_equal(Planes.of(x).whole(), x)


@pytest.mark.parametrize("gathered", [1, 2**30])  # one channel at a time, and all
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_depthwise_convolution(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], kernel: int, gathered: int
) -> None:
    monkeypatch.setattr(channel_planes, "_GATHERED", gathered)
    x, weight, bias = mx.random.normal((2, *size, 6)), mx.random.normal((6, kernel, kernel, 1)), mx.random.normal((6,))
    # Twice, so that what the first one leaves beyond the map would show.
    y = depthwise(depthwise(Planes.of(x), weight, bias), weight).whole()
    expected = mx.conv2d(x, weight, 1, kernel // 2, groups=6) + bias
    expected = mx.conv2d(expected, weight, 1, kernel // 2, groups=6)
    assert relative_error(y, expected) <= 1e-5


@pytest.mark.parametrize("widest", [1, 2**30])  # one row at a time, and all
def test_feed_forward(monkeypatch: pytest.MonkeyPatch, widest: int) -> None:
    monkeypatch.setattr(channel_planes, "_WIDEST", widest)
    x, skip = mx.random.normal((2, 8, 8, 6)), mx.random.normal((2, 8, 8, 6))
    first, second = nn.Linear(6, 24), nn.Linear(24, 6)
    weights = (first.weight, first.bias), (second.weight, second.bias)
    y = feed_forward(Planes.of(x).values, Planes.of(skip).values, *weights, nn.relu)
    expected = skip + second(nn.relu(first(x)))
    assert relative_error(Planes(y, 8, 8).whole(), expected) <= 1e-5
