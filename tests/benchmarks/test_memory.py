"""The memory benchmark: what it accounts is what loading takes."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks import memory, phase_memory, task_memory
from benchmarks.common import GB
from benchmarks.synthetic import official_config, tiny_config, with_layers, write_checkpoint
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.quantize import PRECISIONS
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.ops import backend
from mobileo_mlx.pipeline import MobileO


@pytest.mark.parametrize("bits", [{}, PRECISIONS["small"]])
def test_accounted_weights_are_those_that_loading_takes(tiny_model: Path, bits: dict[str, int]) -> None:
    model = MobileO.load(tiny_model, dtype="float16", quantize=bits)
    for component in COMPONENTS:
        gc.collect()
        before = mx.get_active_memory()
        mx.eval(model.parts[component].parameters())
        accounted = phase_memory.weight_bytes(model.config, component, mx.float16, bits)
        # An allocation is a multiple of some bytes.
        assert accounted <= mx.get_active_memory() - before <= 1.2 * accounted + 2**16


def test_the_planned_footprint_of_the_weights() -> None:
    """The largest stage of each task fits, and everything in half precision does without the encoder."""
    config = official_config("0.5b")
    small = {name: phase_memory.weight_bytes(config, name, mx.float16, PRECISIONS["small"]) for name in COMPONENTS}
    plain = {name: phase_memory.weight_bytes(config, name, mx.float16, {}) for name in COMPONENTS}
    for task, _, components in phase_memory.PHASES:
        assert sum(small[name] for name in components) < memory.STAGED_TARGETS[task] * GB
    assert sum(plain.values()) - plain["vae_encoder"] < memory.UNSTAGED_TARGET * GB


def test_it_measures_every_phase(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Checkpoint.open(tiny_model).config
    monkeypatch.setattr("benchmarks.synthetic.official_config", lambda size: config)
    monkeypatch.setattr("sys.argv", ["memory", "--out", str(tmp_path)])
    assert memory.main() == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    assert [(p["task"], p["phase"]) for p in result["phases"]] == [phase[:2] for phase in phase_memory.PHASES]
    for phase in result["phases"]:
        assert phase["above_gb"] > 0
        assert phase["weights_gb"] <= phase["loaded_gb"] <= 1.2 * phase["weights_gb"] + 2**18 / GB
    assert {row["name"]: row["target_gb"] for row in result["rows"] if ", staged, " in row["name"]} == {
        f"{task}, staged, float16, small": target for task, target in memory.STAGED_TARGETS.items()
    }
    assert (tmp_path / "memory.md").read_text().startswith("# Memory")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float16, so deep that its weights count beside what it computes, whose memory varies."""
    folder = tmp_path_factory.mktemp("memory") / "half"
    write_checkpoint(with_layers(with_layers(tiny_config(), 40), 40, llm=True), folder)
    return folder


def test_a_whole_task_is_measured_phase_by_phase(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase holds the weights that it needs, and staged no others. What MLX's cache holds is written beside it."""
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 3 * GB)
    staged, unstaged = (
        task_memory.measure(half, "edit", preset="small", staged=staged, forms="metal") for staged in (True, False)
    )
    drawn = [("llm", "diffusion_connector"), ("dit",), ("vae_decoder",)]
    for found in (staged, unstaged):
        assert [tuple(phase["components"]) for phase in found["phases"]] == [("vision_tower", "mm_projector"), *drawn]
        assert found["peak_gb"] == max(phase["peak_gb"] for phase in found["phases"]) < 3
        assert [phase["cache_gb"] for phase in found["phases"]] == [3] * len(found["phases"])
    config = Checkpoint.open(half).config
    weights = {
        name: phase_memory.weight_bytes(config, name, mx.float16, PRECISIONS["small"]) / GB for name in COMPONENTS
    }
    assert unstaged["loaded_gb"] >= sum(weights.values()) - weights["vae_encoder"]
    for one, all_of_them in zip(staged["phases"], unstaged["phases"], strict=True):
        needed = sum(weights[name] for name in one["components"])
        assert needed < one["peak_gb"] < all_of_them["peak_gb"] - 0.5 * (unstaged["loaded_gb"] - needed)


def test_forms_of_a_backend_are_chosen_while_a_task_runs(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], backend.backend()
    monkeypatch.setattr(task_memory, "run_task", lambda *_: seen.append(backend.backend()) or [(("llm",), 0, 0)])
    for forms in ("metal", "cpu"):
        task_memory.measure(half, "ask", preset="full", staged=True, forms=forms)
    assert seen == ["metal", "cpu"]
    assert backend.backend() == before


def test_measured_tasks_stand_beside_the_accounts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is kept when another one is measured, whole tasks need the phases, and other bits count for nothing."""
    config = Checkpoint.open(tiny_model).config
    monkeypatch.setattr("benchmarks.synthetic.official_config", lambda size: config)

    def run(*options: str) -> dict[str, dict[str, float | None]]:
        monkeypatch.setattr("sys.argv", ["memory", *options, "--out", str(tmp_path)])
        assert memory.main() == 0
        return {row["name"]: row for row in json.loads((tmp_path / "memory.json").read_text())["rows"]}

    monkeypatch.setattr("sys.argv", ["memory", "--tasks", "staged", "--out", str(tmp_path)])
    assert memory.main() == 2
    assert "without --tasks first" in capsys.readouterr().err
    assert run()["ask, staged, float16, small"]["measured_gb"] is None
    assert run("--tasks", "staged", "--only", "ask")["ask, staged, float16, small"]["measured_gb"] is not None
    found = run("--tasks", "unstaged", "--only", "generate")
    assert found["all weights but the encoder, float16, unstaged"]["measured_gb"] is not None
    assert found["generate, staged, float16, small"]["measured_gb"] is None
    assert "phase of a whole task" in (tmp_path / "memory.md").read_text()
    found = run()  # the phases again
    assert found["ask, staged, float16, small"]["measured_gb"] is not None
    monkeypatch.setitem(PRECISIONS, "small", {"llm": 8})
    assert run()["ask, staged, float16, small"]["measured_gb"] is None


def test_an_unknown_size_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["memory", "--size", "7b", "--out", str(tmp_path)])
    assert memory.main() == 2
    assert "there is no size '7b'" in capsys.readouterr().err
