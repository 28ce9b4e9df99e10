from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from streaming import streamed

from mobileo_mlx.ops import backend, conv, device_settings, forms
from mobileo_mlx.ops.conv import Conv2d, GroupedLinear, UpsampledConv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 4), (1, 1, 1)])
def test_the_flipped_convolution_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, groups: int, bias: bool
) -> None:
    """On Metal the weights of what it might compute by Winograd are flipped twice; the result must not know it."""
    layer = Conv2d(8, 12, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
    layer.set_dtype(mx.float16)
    x = mx.random.normal((2, 9, 7, 8), key=mx.random.key(1)).astype(mx.float16)
    plain = nn.Conv2d.__call__(layer, x)
    calls = []
    convolve = mx.conv_general

    def recorded(*arguments: object, **options: object) -> mx.array:
        calls.append(options.get("flip"))
        return convolve(*arguments, **options)

    # Nothing is computed on another device: the layer is only told that there is one.
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(mx, "conv_general", recorded)
    flipped = layer(x)
    assert calls == ([True] if (kernel, stride, groups) == (3, 1, 1) else [])
    assert flipped.shape == plain.shape
    assert mx.allclose(flipped, plain, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("device", "dtype", "tf32", "form"),
    [
        ("metal", mx.float32, False, "plain"),
        ("metal", mx.float32, True, "flipped"),
        ("metal", mx.float16, False, "flipped"),
        ("metal", mx.bfloat16, True, "flipped"),
        ("cuda", mx.float32, False, "plain"),
        ("cuda", mx.float16, False, "plain"),
        ("cpu", mx.float16, False, "plain"),
    ],
)
def test_weights_are_flipped_where_metals_winograd_would_be_inexact(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: mx.Dtype, tf32: bool, form: str
) -> None:
    layer, x = Conv2d(32, 32, 3, padding=1), mx.random.normal((1, 5, 5, 32))
    layer.set_dtype(dtype)
    taken = []
    for name in ("conv2d", "conv_general"):
        convolve = getattr(mx, name)
        monkeypatch.setattr(mx, name, lambda *a, f=convolve, name=name, **k: taken.append(name) or f(*a, **k))
    monkeypatch.setattr(backend, "backend", lambda: device)
    monkeypatch.setattr(backend, "metal_uses_tf32", lambda: tf32)
    for mode in (layer.eval(), layer.train()):
        taken.clear()
        mode(x.astype(dtype))
        assert taken == ["conv_general" if form == "flipped" else "conv2d"]


@pytest.mark.parametrize("operation", ["conv3x3", "upsample"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
@pytest.mark.parametrize("unfolded_bytes", [1, 2**30])  # a row at a time, and all
@pytest.mark.parametrize("dims", [(8, 12), (64, 32)])
def test_all_forms_are_the_same_convolution(
    monkeypatch: pytest.MonkeyPatch, operation: str, dtype: mx.Dtype, unfolded_bytes: int, dims: tuple[int, int]
) -> None:
    monkeypatch.setattr(conv, "UNFOLDED_BYTES", unfolded_bytes)
    layer = Conv2d(*dims, 3, padding=1) if operation == "conv3x3" else UpsampledConv2d(*dims)
    layer.bias = mx.random.normal((dims[1],))
    x = mx.random.normal((2, 9, 13, dims[0]), key=mx.random.key(1))
    expected = nn.Conv2d.__call__(layer, x) if operation == "conv3x3" else _repeated_convolution(layer, x)
    layer.set_dtype(dtype)
    seen = set()
    for form in forms.FORMS[operation]:
        with forms.forced({operation: form}):
            for y in (layer.eval()(x.astype(dtype)), streamed(layer, x.astype(dtype))):
                assert y.dtype == dtype
                error = mx.abs(y - expected).max().item() / mx.abs(expected).max().item()
                assert error <= (2e-5 if dtype == mx.float32 else 4e-3), form
            seen.add(_names(layer(x.astype(dtype))))
    # Each is another computation; flipped weights, once made, can't be seen in it.
    assert len(seen) == len({*forms.FORMS[operation]} - {"flipped"})


def _names(y: mx.array) -> str:
    text = io.StringIO()
    mx.export_to_dot(text, y)
    return str(sorted(Counter(re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue())).items()))


def test_a_stored_form_is_taken_for_its_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(4, 12, 3, padding=1), mx.random.normal((1, 16, 16, 4))
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    key = forms.key("conv3x3", conv.shape_key(layer.weight, x))
    monkeypatch.setattr(device_settings, "current", lambda: device_settings.DeviceSettings(forms={key: "unfolded"}))
    taken = []
    convolve = conv.unfolded
    monkeypatch.setattr(conv, "unfolded", lambda *a: taken.append(a[0].shape) or convolve(*a))
    expected = mx.conv2d(x, layer.weight, padding=1)
    assert mx.allclose(layer.eval()(x), expected, atol=1e-5)
    assert taken == [(1, 18, 18, 4)]
    layer(mx.zeros((1, 64, 64, 4)))
    layer(x.astype(mx.float16))
    assert len(taken) == 1


@pytest.mark.parametrize(
    ("make", "of"),
    [(lambda: Conv2d(4, 4, 3, padding=1), "_flipped"), (lambda: UpsampledConv2d(4, 4), "polyphase_kernels")],
)
def test_on_a_gpu_weights_are_made_once_and_anew_when_they_are_others(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Conv2d], of: str
) -> None:
    made, function = [], getattr(conv, of)
    monkeypatch.setattr(conv, of, lambda weight: made.append(1) or function(weight))
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    layer, x = make().eval(), mx.random.normal((1, 6, 5, 4))
    layer.set_dtype(mx.float16)
    names = dict(tree_flatten(layer.parameters())).keys()
    first = layer(x.astype(mx.float16))
    assert mx.array_equal(layer(x.astype(mx.float16)), first)
    assert len(made) == 1
    assert dict(tree_flatten(layer.parameters())).keys() == names
    layer.update({"weight": 2 * layer.weight, "bias": 2 * layer.bias})
    assert mx.allclose(layer(x.astype(mx.float16)), 2 * first, rtol=1e-2, atol=1e-2)
    assert len(made) == 2


@pytest.mark.parametrize("width", [20, 70])  # with and without Winograd on a CPU
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "dims"), [(3, 1, (32, 40)), (3, 2, (8, 12)), (3, 1, (32, 3)), (1, 1, (8, 8))]
)
def test_bands_of_a_convolution(kernel: int, stride: int, dims: tuple[int, int], bias: bool, width: int) -> None:
    layer = Conv2d(*dims, kernel, stride=stride, padding=kernel // 2, bias=bias)
    x = mx.random.normal((2, 14, width, dims[0]), key=mx.random.key(1))
    y, expected = streamed(layer, x), nn.Conv2d.__call__(layer, x)
    assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def _repeated_convolution(layer: UpsampledConv2d, x: mx.array) -> mx.array:
    large = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    return mx.conv2d(large, layer.weight, padding=1) + layer.bias


@pytest.mark.parametrize("width", [20, 70])
def test_upsampling_never_makes_the_large_image(width: int) -> None:
    layer = UpsampledConv2d(32, 36)
    layer.bias = mx.random.normal((36,))
    x = mx.random.normal((2, 9, width, 32), key=mx.random.key(1))
    expected = _repeated_convolution(layer, x)
    for y in (layer(x), streamed(layer, x), layer(x)):
        assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


@pytest.mark.parametrize("make", [lambda: Conv2d(32, 32, 3, padding=1), lambda: UpsampledConv2d(32, 32)])
@pytest.mark.parametrize("width", [20, 70])
def test_bands_keep_half_precision(make: Callable[[], Conv2d], width: int) -> None:
    layer, x = make(), mx.random.normal((1, 9, width, 32))
    expected = layer(x)
    layer.set_dtype(mx.float16)
    y = streamed(layer, x.astype(mx.float16))
    assert y.dtype == mx.float16
    assert mx.allclose(y, expected, atol=1e-2)


def test_grouped_linear_is_a_grouped_convolution() -> None:
    layer = GroupedLinear(12, 3)
    x = mx.random.normal((2, 5, 4, 12), key=mx.random.key(0))
    expected = mx.conv2d(x, layer.weight.reshape(12, 1, 1, 4), groups=3)
    assert mx.allclose(layer(x), expected, atol=1e-5)


def test_grouped_linear_is_one_product_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's CPU backend reads out of bounds where a product's number times the weight's size exceeds 32 bits."""
    layer, shapes = GroupedLinear(12, 3), []
    plain = mx.array.__matmul__
    monkeypatch.setattr(mx.array, "__matmul__", lambda a, b: shapes.append(a.shape) or plain(a, b))
    layer(mx.zeros((2, 5, 4, 12)))
    assert shapes == [(3, 40, 4)]
