from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import pytest
from streaming import streamed

from mobileo_mlx.ops import backend
from mobileo_mlx.ops.cpu import depthwise
from mobileo_mlx.ops.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "multiplier", "size"),
    # On a CPU training takes another way for small maps, larger and large ones; all have to give the same.
    [
        (3, 1, 1, (4, 5)),
        (7, 1, 1, (5, 4)),
        (7, 2, 2, (6, 8)),
        (3, 2, 1, (5, 7)),
        (3, 1, 2, (3, 3)),
        (3, 1, 1, (80, 60)),
        (3, 2, 2, (9, 12)),
        (7, 2, 1, (19, 23)),
        (3, 1, 1, (9, 100)),
    ],
)
def test_depthwise_convolution(
    kernel: int, stride: int, multiplier: int, size: tuple[int, int], bias: bool, dtype: mx.Dtype
) -> None:
    layer = DepthwiseConv2d(6, kernel, stride=stride, multiplier=multiplier, bias=bias)
    if bias:
        layer.bias = mx.random.normal(layer.bias.shape, key=mx.random.key(2))
    x = mx.random.normal((2, *size, 6), key=mx.random.key(1))
    expected = mx.conv2d(x, layer.weight, stride, kernel // 2, groups=6)
    expected = expected + layer.bias if bias else expected
    layer.set_dtype(dtype)
    y = layer(x.astype(dtype))
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == mx.float32 else 1e-2
    assert mx.allclose(y, expected, atol=tolerance)
    for part in (layer.eval()(x.astype(dtype)), streamed(layer, x.astype(dtype))):
        assert part.dtype == dtype
        assert mx.allclose(part, expected, atol=tolerance)


def test_cuda_trains_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient with groups is one product after the other."""
    layer, x = DepthwiseConv2d(8, 3), mx.random.normal((2, 4, 4, 8))
    expected = layer(x)
    monkeypatch.setattr(backend, "backend", lambda: "cuda")
    monkeypatch.delattr(mx, "conv2d")
    assert mx.allclose(layer(x), expected, atol=1e-5)


def test_a_convolution_with_another_weight_and_bias() -> None:
    layer, other = DepthwiseConv2d(6, 3), DepthwiseConv2d(6, 3)
    layer.bias, other.bias = mx.random.normal((6,)), mx.random.normal((6,))
    x = mx.random.normal((2, 9, 7, 6))
    expected, weight = other(x), layer.weight
    assert mx.allclose(layer.without_bias()(x), layer(x) - layer.bias, atol=1e-5)
    assert mx.array_equal(layer.without_bias().replaced(other.weight, other.bias)(x), expected)
    assert layer.weight is weight


def test_tiles_are_used_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training never: their gradient is a scatter."""
    layer, x = DepthwiseConv2d(8, 7), mx.random.normal((1, 80, 60, 8))
    taken, tiles = [], depthwise.Tiles
    monkeypatch.setattr(depthwise, "Tiles", lambda *a: taken.append(1) or tiles(*a))
    monkeypatch.setattr(backend, "backend", lambda: "cpu")
    layer(x)
    assert not taken
    layer.eval()(x)
    assert taken


# The gradient of strides on Metal


def gradients(layer: DepthwiseConv2d, x: mx.array) -> tuple[mx.array, list[mx.array]]:
    """The convolution, and what a loss gives to the weight, the bias and the input."""

    def loss(weight: mx.array, bias: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
        y = layer.replaced(weight, bias)(x)
        return (y * mx.sin(mx.arange(y.size)).reshape(y.shape)).sum(), y

    (_, y), found = mx.value_and_grad(loss, argnums=(0, 1, 2))(layer.weight, layer.bias, x)
    return y, found


@pytest.mark.parametrize("batch", [2, 4, 9])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (6, 5), (1, 2)])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (5, 3)])
def test_strides_have_the_same_gradient_on_metal(
    kernel: int, stride: int, multiplier: int, size: tuple[int, int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = DepthwiseConv2d(3, kernel, stride=stride, multiplier=multiplier)
    layer.bias = mx.random.normal(layer.bias.shape, key=mx.random.key(2))
    x = mx.random.normal((batch, *size, 3), key=mx.random.key(1))
    monkeypatch.setattr(backend, "backend", lambda: "cuda")
    plain, expected = gradients(layer, x)
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    y, found = gradients(layer, x)
    assert y.shape == plain.shape
    assert mx.allclose(y, plain, atol=1e-5)
    for array, other in zip(found, expected, strict=True):
        assert array.shape == other.shape
        assert mx.allclose(array, other, atol=1e-4)


def gradient_graph(layer: DepthwiseConv2d, x: mx.array) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = []
    mx.export_function(nodes.append, lambda x: gradients(layer, x)[1], x)
    return [node for node in nodes if node["type"] == "primitive"]


def unfolded(convolution: dict[str, Any]) -> int:
    """Elements that Metal unfolds a grouped convolution to (`dispatch_conv_2D_gpu` in MLX's backend/metal/conv.cpp)."""
    (x, weight), out = (shape for _, shape, _ in convolution["inputs"]), convolution["outputs"][0][1]
    stride, _, _, dilation, input_dilation, groups, _ = convolution["arguments"]
    dim_in, dim_out, kernel = x[-1] // groups, weight[0] // groups, weight[1:3]
    depthwise = dim_in == dim_out == 1 and dilation == [1, 1] and max(kernel) <= 7 and max(stride) <= 2
    implicit = (dim_in <= 4 or dim_in % 16 == 0) and (dim_out <= 16 or dim_out % 16 == 0)
    if input_dilation == [1, 1] and (implicit or (depthwise and x[-1] % 16 == 0)):
        return 0
    return int(math.prod(out[:3]) * math.prod(kernel) * x[-1])


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(("kernel", "multiplier"), [(7, 2), (3, 1)])
def test_metal_unfolds_no_stride_in_training(
    kernel: int, multiplier: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = DepthwiseConv2d(96, kernel, stride=2, multiplier=multiplier), mx.zeros((batch, 256, 256, 96))

    def seen(form: str) -> tuple[bool, int, int]:
        """Whether there is an input dilation, elements of the largest array, and of all that is unfolded."""
        monkeypatch.setattr(backend, "backend", lambda: form)
        nodes = gradient_graph(layer, x)
        convolutions = [node for node in nodes if node["name"] == "Convolution"]
        dilated = any(node["arguments"][4] != [1, 1] for node in convolutions)
        largest = max(math.prod(shape) for node in nodes for _, shape, _ in node["outputs"])
        return dilated, largest, max(map(unfolded, convolutions))

    dilated, largest, more = seen("metal")
    assert not dilated
    assert largest < 1.1 * x.size
    assert more == 0
    # What it would be without the form for Metal: the same test fails.
    dilated, _, more = seen("cuda")
    assert dilated
    assert more == kernel**2 * x.size * multiplier
