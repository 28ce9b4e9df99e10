"""Charts are files of the right size; without matplotlib one is left out, and said to be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import charts


def test_bars_and_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [("theirs", 10.0), ("ours", 2000.0)]
    charts.bar_chart({"Speed": bars, "Memory": bars * 2, "Nothing": []}, tmp_path / "bars.png", ours="ours")
    points = [(1.0, 2.0), (2.0, 5.0)]
    panel = ("time", "images", "seconds", {"measured": points, "linear": points})
    charts.curves([panel] * 3, tmp_path / "curves.png")
    with Image.open(tmp_path / "bars.png") as bar, Image.open(tmp_path / "curves.png") as curve:
        assert bar.width == curve.width == 1000
        assert curve.height == 640  # two rows
        blue = tuple(bytes.fromhex(charts.OURS[1:]))
        for image in (bar, curve):
            assert blue in {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not charts.available(Path("growth.png"))
    assert capsys.readouterr().err == "growth.png is left out: matplotlib is missing; pip install -e '.[bench]'\n"
