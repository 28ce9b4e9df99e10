from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mlx.core as mx
import pytest

from mobileo_mlx.models.dc_ae import DCAEConfig, Decoder, Encoder, ResBlock, Upsample
from mobileo_mlx.models.fastvithd import FastViTHD, FastViTHDConfig
from mobileo_mlx.ops import backend, bands, device_settings, forms
from mobileo_mlx.ops.bands import evaluated, joined, paired, remembered, windows
from mobileo_mlx.ops.blocks import Residual
from mobileo_mlx.ops.device_settings import DeviceSettings


def pieces(x: mx.array, *heights: int) -> list[mx.array]:
    out, first = [], 0
    for height in heights:
        out.append(x[:, first : first + height])
        first += height
    assert first == x.shape[1]
    return out


def test_bands_are_bounded_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, same = mx.random.normal((1, 50, 512, 32)), Residual(join=lambda x, y: x)
    for name, limit in (("cpu", bands.CPU_BYTES), ("metal", 2**21)):
        monkeypatch.setattr(backend, "backend", lambda name=name: name)
        monkeypatch.setattr(bands, "GPU_BYTES", limit)
        with forms.forced({"map": "bands"}):
            parts = list(bands.stream(same, x))
        assert len(parts) > 1
        assert all(part.nbytes <= limit for part in parts)
        assert all(part.shape[1] % 4 == 0 for part in parts[:-1])
        assert mx.array_equal(joined(parts), x)


def test_a_band_has_four_rows_however_wide_the_image() -> None:
    x = mx.zeros((1, 6, 2**16, 32))
    assert [part.shape[1] for part in bands.stream(Residual(join=lambda x, y: x), x)] == [4, 2]


@pytest.mark.parametrize("heights", [(11,), (1, 1, 9), (4, 4, 3), (2, 1, 1, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride", "step"), [(3, 1, 1), (3, 1, 4), (7, 1, 4), (7, 2, 4), (3, 2, 1), (1, 1, 2)]
)
def test_windows_are_the_rows_of_a_padded_convolution(
    heights: tuple[int, ...], kernel: int, stride: int, step: int
) -> None:
    x, weight = mx.random.normal((2, 11, 9, 3)), mx.random.normal((4, kernel, kernel, 3))
    parts = [
        mx.conv2d(window, weight, stride, (0, kernel // 2))
        for window in windows(iter(pieces(x, *heights)), kernel, stride=stride, step=step)
    ]
    assert all(part.shape[1] % step == 0 for part in parts[:-1])
    assert mx.allclose(joined(parts), mx.conv2d(x, weight, stride, kernel // 2), atol=1e-5)


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(2), Fraction(1, 2)])
def test_rows_meet_those_they_came_from(ratio: Fraction) -> None:
    early = mx.arange(12.0).reshape(1, 12, 1, 1)
    memory: deque[mx.array] = deque()
    assert len(list(remembered(iter(pieces(early, 4, 2, 6)), memory))) == 3
    heights = [int(rows / ratio) for rows in (2, 8, 2)]
    late = pieces(mx.zeros((1, sum(heights), 1, 1)), *heights)
    pairs = list(paired(memory, iter(late), ratio=ratio))
    assert [(x.shape[1], y.shape[1]) for x, y in pairs] == [(int(h * ratio), h) for h in heights]
    assert mx.array_equal(joined(x for x, _ in pairs), early)
    assert not memory


def test_a_band_is_computed_before_the_next_is_asked_for() -> None:
    asked = []

    def parts() -> object:
        for i in range(3):
            asked.append(i)
            yield mx.full((1, 1, 1, 1), i)

    for i, _ in enumerate(evaluated(parts())):
        assert asked == list(range(i + 1))


@pytest.mark.parametrize("form", ["bands", "large bands", "whole"])
@pytest.mark.parametrize("device", ["cpu", "metal", "cuda"])
def test_all_forms_of_a_network_are_the_same(monkeypatch: pytest.MonkeyPatch, device: str, form: str) -> None:
    blocks, x = [ResBlock(8), Upsample(8, 4), ResBlock(4)], mx.random.normal((2, 30, 6, 8))
    expected = x
    for block in blocks:
        expected = block.train()(expected)
        block.eval()
    for name in ("CPU_BYTES", "GPU_BYTES"):
        monkeypatch.setattr(bands, name, 2**11)
    monkeypatch.setattr(backend, "backend", lambda: device)
    with forms.forced({"map": form}):
        parts = list(bands.stream(blocks, x))
    assert (len(parts) == 1) == (form == "whole")
    assert mx.abs(joined(parts) - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


def test_a_waiting_chain_holds_few_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for each block at most, where each has five steps that could hold what they last saw."""
    size = 2**16
    monkeypatch.setattr(bands, "CPU_BYTES", size)
    monkeypatch.setattr(bands, "GPU_BYTES", size)
    blocks = [*(ResBlock(32) for _ in range(4)), Upsample(32, 32)]
    x = mx.random.normal((1, 256, 32, 32))
    mx.eval(x, *(block.parameters() for block in blocks))
    before = mx.get_active_memory()
    chain = bands.stream([block.eval() for block in blocks], x)
    held = []
    while (part := next(chain, None)) is not None:
        del part
        held.append(mx.get_active_memory() - before)
    assert len(held) > 8
    assert max(held) < 3 * len(blocks) * size


class Counted:
    """Stands for `mx.eval` and `mx.async_eval`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: Counter[str] = Counter()
        for name in ("eval", "async_eval"):
            monkeypatch.setattr(mx, name, lambda *arrays, name=name: self.calls.update([name]))


@pytest.mark.parametrize(
    ("make", "shape", "most", "waits"),
    [
        (lambda: Decoder(DCAEConfig()), (1, 16, 16, 32), 120, 4),  # 512 px
        (lambda: Decoder(DCAEConfig()), (1, 64, 64, 32), 2000, 24),  # 2048 px, whose large maps are cut
        (lambda: Encoder(DCAEConfig()), (1, 512, 512, 3), 120, 4),
        (lambda: FastViTHD(FastViTHDConfig()), (1, 1024, 1024, 3), 240, 0),
    ],
)
def test_a_gpu_is_handed_its_work_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], shape: tuple[int, ...], most: int, waits: int
) -> None:
    """At the real size; nothing is computed."""
    counted = Counted(monkeypatch)
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    network = make().eval()
    network.set_dtype(mx.float16)
    run = network.decode if isinstance(network, Decoder) else network.encode
    run(mx.zeros(shape))
    assert counted.calls["eval"] <= waits
    assert 20 < counted.calls["async_eval"] < most  # so that the GPU begins before the graph is whole


def test_a_map_is_whole_as_far_as_a_gpu_s_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Residual(join=lambda x, y: x)

    def parts(device: str, memory: int, nbytes: int, dtype: mx.Dtype = mx.float16) -> int:
        monkeypatch.setattr(backend, "backend", lambda: device)
        monkeypatch.setattr(backend, "memory", lambda: memory)
        x = mx.broadcast_to(mx.zeros((), dtype), (1, nbytes // dtype.size // 2**14, 2**7, 2**7))
        Counted(monkeypatch)
        return len(list(bands.stream(same, x)))

    small, large = 2**33 * 2 // 3, 2**37  # a Mac of 8 GB, and a GPU of 128 GB
    for device in ("metal", "cuda"):
        assert parts(device, small, 2**26) == 1
        assert parts(device, small, 2**28) == 8
        assert parts(device, large, 2**28) == 1
        assert parts(device, large, 2**31) == 64  # beyond what MLX convolves rightly
    assert parts("cpu", large, 2**26) == 32
    assert parts("cuda", small, 2**26, mx.float32) == 1
    assert parts("metal", small, 2**26, mx.float32) == 2  # whose Winograd takes maps of its own


def test_a_stored_form_decides_for_its_map_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, same = mx.zeros((1, 64, 64, 32)), Residual(join=lambda x, y: x)
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(bands, "GPU_BYTES", 2**16)
    settings = DeviceSettings(forms={forms.key("map", bands.map_key(x)): "bands"})
    monkeypatch.setattr(device_settings, "current", lambda: settings)
    assert len(list(bands.stream(same, x))) == 8
    assert len(list(bands.stream(same, x[:, 1:]))) == 1
    with forms.forced({"map": "large bands"}):
        assert len(list(bands.stream(same, x))) == 2
