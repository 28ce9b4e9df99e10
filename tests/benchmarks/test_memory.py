"""The memory benchmark: what it accounts is what loading takes."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks import memory
from benchmarks.synthetic import official_config
from mobileo_mlx.checkpoint import Checkpoint
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.quantize import PRESETS


@pytest.mark.parametrize("bits", [{}, PRESETS["small"]])
def test_accounted_weights_are_those_that_loading_takes(tiny_model: Path, bits: dict[str, int]) -> None:
    model = MobileO.load(tiny_model, dtype="float16", quantize=bits)
    for component in COMPONENTS:
        gc.collect()
        before = mx.get_active_memory()
        mx.eval(model.component(component).parameters())
        accounted = memory.weight_bytes(model.config, component, mx.float16, bits)
        # An allocation is a multiple of some bytes.
        assert accounted <= mx.get_active_memory() - before <= 1.2 * accounted + 2**16


def test_the_planned_footprint_of_the_weights() -> None:
    """The largest stage of each task fits, and everything in half precision does without the encoder."""
    config = official_config("0.5b")
    small = {name: memory.weight_bytes(config, name, mx.float16, PRESETS["small"]) for name in COMPONENTS}
    plain = {name: memory.weight_bytes(config, name, mx.float16, {}) for name in COMPONENTS}
    for task, _, components in memory.PHASES:
        assert sum(small[name] for name in components) < memory.STAGED_TARGETS[task] * memory.GB
    assert sum(plain.values()) - plain["vae_encoder"] < memory.UNSTAGED_TARGET * memory.GB


def test_it_measures_every_phase(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Checkpoint.open(tiny_model).config
    monkeypatch.setattr("benchmarks.synthetic.official_config", lambda size: config)
    monkeypatch.setattr("sys.argv", ["memory", "--out", str(tmp_path)])
    assert memory.main() == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    assert [(p["task"], p["phase"]) for p in result["phases"]] == [phase[:2] for phase in memory.PHASES]
    for phase in result["phases"]:
        assert phase["above_gb"] > 0
        assert phase["weights_gb"] <= phase["loaded_gb"] <= 1.2 * phase["weights_gb"] + 2**18 / memory.GB
    assert {row["name"]: row["target_gb"] for row in result["rows"] if ", staged, " in row["name"]} == {
        f"{task}, staged, float16, small": target for task, target in memory.STAGED_TARGETS.items()
    }
    assert (tmp_path / "memory.md").read_text().startswith("# Memory")


def test_an_unknown_size_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["memory", "--size", "7b", "--out", str(tmp_path)])
    assert memory.main() == 2
    assert "there is no size '7b'" in capsys.readouterr().err
