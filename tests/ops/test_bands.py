from __future__ import annotations

from collections import deque
from fractions import Fraction

import mlx.core as mx
import pytest

from mobileo_mlx.models.dc_ae import ResBlock, Upsample
from mobileo_mlx.ops import backend, bands, forms
from mobileo_mlx.ops.bands import evaluated, joined, paired, remembered, windows
from mobileo_mlx.ops.blocks import Residual


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
