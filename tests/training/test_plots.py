from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx.errors import OutputError
from mobileo_mlx.training.plots import can_plot, plot_losses


def metrics(*losses: float) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": i, "loss": loss} for i, loss in enumerate(losses, start=1)]
    return [*lines, {"step": len(losses), "held_out": {"loss": 0.7}}]


def colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.size == (800, 480)
        return len(image.convert("RGB").getcolors(1 << 20) or [])


def test_the_losses_are_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert can_plot()
    plot_losses(metrics(1.0, 0.5, 0.6), tmp_path / "loss.png")
    first = (tmp_path / "loss.png").read_bytes()
    assert colours(tmp_path / "loss.png") > 10
    plot_losses(metrics(1.0, 0.5, 0.1), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() != first
    with pytest.raises(OutputError, match="missing"):
        plot_losses(metrics(1.0), tmp_path / "missing" / "loss.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", [(), (0.0,), (0.0, math.nan, 1.0)])
def test_what_has_no_logarithm_is_left_out(losses: tuple[float, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_losses(metrics(*losses), tmp_path / "loss.png")
    assert colours(tmp_path / "loss.png") > 1


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_plot()
