import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mobileo_mlx.checkpoints import precision
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.modules import get_submodule
from mobileo_mlx.doctor import comparison, paths
from mobileo_mlx.doctor.sources import CheckpointSource, RandomSource
from mobileo_mlx.doctor.verify import ComponentReport, Conclusion, conclude, store, verify
from mobileo_mlx.errors import CheckpointError, NotFiniteError
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.ops import attention, backend, depthwise, device_settings
from mobileo_mlx.ops.device_settings import DeviceSettings

Candidates = Callable[[Iterable[mx.Dtype]], None]


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> Candidates:
    """Sets the precisions that every component may take, the best first. A CPU computes in all of them."""

    def replace(dtypes: Iterable[mx.Dtype]) -> None:
        monkeypatch.setattr(precision, "candidates", lambda component, stored: tuple(dtypes))

    return replace


def reports(source: CheckpointSource, **options: object) -> list[ComponentReport]:
    return [event for event in verify(source, **options) if isinstance(event, ComponentReport)]


def failures(source: CheckpointSource) -> dict[str, str]:
    """The block where the error begins, by component."""
    return {report.component: report.failure.name for report in reports(source) if report.failure is not None}


class Scaled(CheckpointSource):
    """The bundled model with weights of one layer that are larger than trained ones."""

    component, layer, factor = "vae_decoder", "up_blocks.2.1.conv1", 1e4

    def network(self, component: str, dtype: mx.Dtype) -> nn.Module:
        network = super().network(component, mx.float32)
        if component == self.component:
            layer = get_submodule(network, self.layer)
            layer.weight = layer.weight * self.factor
        network.set_dtype(dtype)
        return network


def test_every_component_passes_in_every_precision(candidates: Candidates) -> None:
    candidates([mx.bfloat16, mx.float16, mx.float32])
    found = reports(CheckpointSource("tiny"))
    assert {(report.component, report.dtype) for report in found} == {
        (component, dtype) for component in COMPONENTS for dtype in precision.DTYPES
    }
    assert [report.failure for report in found if report.failure is not None] == []
    by_dtype = {dtype: [r for r in found if r.dtype == dtype] for dtype in precision.DTYPES}
    worst = {d: max(one.rms for r in reports for one in (*r.blocks, *r.whole)) for d, reports in by_dtype.items()}
    assert worst["float32"] < 1e-6 < 1e-4 < worst["float16"] < worst["bfloat16"]
    assert {report.rank for report in by_dtype["bfloat16"]} == {0}
    assert {report.rank for report in by_dtype["float32"]} == {2}
    assert conclude(found) == [Conclusion(component, "bfloat16", None, None) for component in paths.ORDER]


def test_every_block_of_every_network_is_compared() -> None:
    """Whatever layer has weights is inside of a block, or one of the few that are compared in the whole alone."""
    source = CheckpointSource("tiny")
    found = {report.component: report for report in reports(source)}
    for component, report in found.items():
        network = source.network(component, mx.float32)
        blocks = {block.name for block in report.blocks}
        leaves = [name for name, layer in network.named_modules() if not layer.children() and layer.parameters()]
        outside = [name for name in leaves if not any(f"{name}.".startswith(f"{b}.") or b == "" for b in blocks)]
        assert outside == (["embed_tokens"] if component == "llm" else [])


def test_weights_that_are_not_finite_are_at_fault_themselves(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    file, name = model / "dit.safetensors", "transformer_blocks.0.ff.conv_inverted.weight"
    weights = load_file(file)
    save_file({**weights, name: weights[name] * np.float32("nan")}, file, metadata={"format": "mlx"})
    with pytest.raises(NotFiniteError, match=rf"dit in float32 .* {name} in '.*dit\.safetensors' holds NaN"):
        reports(CheckpointSource(model))


def test_a_component_that_is_missing_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "diffusion_connector.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"absent are diffusion_connector\.safetensors"):
        CheckpointSource(model)


def test_one_precision_alone(candidates: Candidates) -> None:
    found = reports(CheckpointSource("tiny"), dtype=mx.float16)
    assert {(report.dtype, report.rank) for report in found} == {("float16", None)}
    assert conclude(found) == []


def test_a_wrong_sign_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = attention.attention_by_heads
    monkeypatch.setattr(attention, "attention_by_heads", lambda *args: -original(*args))
    found = failures(CheckpointSource("tiny"))
    assert found == {"vision_tower": "network.7.0"}  # the first block with attention


def test_a_transposed_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Transposed(depthwise.depthwise.Shifts):
        def __init__(self, weight: mx.array, bias: mx.array | None):
            super().__init__(mx.contiguous(weight.swapaxes(1, 2)), bias)

    monkeypatch.setattr(depthwise.depthwise, "Shifts", Transposed)
    found = failures(CheckpointSource("tiny"))
    assert found["dit"] == "transformer_blocks.0"
    assert found.keys() >= {"dit", "vae_encoder", "vae_decoder"}
    assert found.keys().isdisjoint({"llm", "lm_head", "mm_projector", "diffusion_connector"})


def test_what_is_wrong_in_production_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = paths.PreparedSana.__call__

    def wrong(self: paths.PreparedSana, step: int, latents: mx.array, *, guided: bool) -> mx.array:
        velocity = original(self, step, latents, guided=guided)
        return velocity[::-1] if guided else velocity  # the conditional half first

    monkeypatch.setattr(paths.PreparedSana, "__call__", wrong)
    assert failures(CheckpointSource("tiny")) == {"dit": "guided_velocity"}


def test_a_missing_kernel_is_a_failure_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> mx.array:
        raise ValueError("no such kernel")

    monkeypatch.setattr(attention, "attention_by_heads", missing)
    found = {report.component: report for report in reports(CheckpointSource("tiny"))}
    assert len(found) == len(COMPONENTS)
    failure = found["vision_tower"].failure
    assert failure is not None
    assert failure.name == "network.7.0"
    assert failure.stopped_by == "ValueError: no such kernel"
    assert found["dit"].failure is None


def test_overflow_in_float16_is_named_and_the_precision_to_take_is_stored_and_taken(
    candidates: Candidates, table_defaults: None
) -> None:
    candidates([mx.float16, mx.bfloat16, mx.float32])
    found = reports(Scaled("tiny"))
    wrong = [report for report in found if report.failure is not None]
    assert [(report.component, report.dtype, report.failure.name) for report in wrong if report.failure] == [
        ("vae_decoder", "float16", "up_blocks.2.1")
    ]
    block = next(block for block in wrong[0].blocks if block.name == "up_blocks.2.1")
    assert not block.rms < float("inf")
    assert block.peak is not None
    assert block.peak > 65504
    assert block.peak_layer.startswith("up_blocks.2.1.conv")
    (conclusion,) = (one for one in conclude(found) if one.failure is not None)
    assert (conclusion.component, conclusion.default, conclusion.instead) == ("vae_decoder", "float16", "bfloat16")

    assert store(conclude(found)) == device_settings.path()
    assert device_settings.current().precision == {"vae_decoder": "bfloat16"}
    checkpoint = Checkpoint.open("tiny")
    assert load_component(checkpoint, "vae_decoder").conv_in.weight.dtype == mx.bfloat16
    assert load_component(checkpoint, "vae_encoder").conv_out.weight.dtype == mx.float32


def test_a_component_that_passes_again_takes_its_default(candidates: Candidates) -> None:
    device_settings.save(DeviceSettings({"dit": "bfloat16", "llm": "bfloat16"}, {"conv": "flipped"}))
    found = [Conclusion("dit", "float16", None, None)]
    assert store(found, trained=False) is None  # random weights do not leave float16's range
    assert store(found) == device_settings.path()
    assert device_settings.current() == DeviceSettings({"llm": "bfloat16"}, {"conv": "flipped"})
    assert store(found) is None  # nothing has changed


def test_a_coarser_precision_with_the_same_error_is_nothing_to_take() -> None:
    """A wrong kernel whose error is within what is allowed in bfloat16 is no reason to take that."""

    def report(dtype: str, rank: int, rms: float, passed: bool) -> ComponentReport:
        return ComponentReport("dit", dtype, rank, (comparison.Comparison("block", rms, rms, passed, 1.0),), (), 0.0)

    wrong = report("float32", 0, 3.1e-2, False)
    assert conclude([wrong, report("bfloat16", 1, 3.4e-2, True)])[0].instead is None
    assert conclude([wrong, report("bfloat16", 1, 4e-3, True)])[0].instead == "bfloat16"
    overflow = report("float16", 0, float("nan"), False)
    assert conclude([overflow, report("bfloat16", 1, 4e-3, True)])[0].instead == "bfloat16"
    assert conclude([overflow, report("bfloat16", 1, float("nan"), False)])[0].instead is None


def test_where_no_precision_passes_nothing_is_stored(candidates: Candidates) -> None:
    candidates([mx.float16])
    found = conclude(reports(Scaled("tiny")))
    assert [one.instead for one in found if one.failure is not None] == [None]
    assert store(found) is None
    assert not device_settings.path().is_file()


@pytest.mark.parametrize(
    ("name", "units", "expected"),
    [("cpu", False, "float32"), ("cuda", False, "TF32"), ("metal", False, "float32"), ("metal", True, "TF32")],
)
def test_float32_is_judged_as_it_is_multiplied(
    monkeypatch: pytest.MonkeyPatch, name: str, units: bool, expected: str
) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    monkeypatch.setattr(backend, "backend", lambda: name)
    monkeypatch.setattr(backend, "metal_uses_tf32", lambda: units)
    assert comparison.rounding(mx.float32) == expected
    assert comparison.rounding(mx.float16) == "float16"
    assert comparison.coarsest([mx.float32, mx.float16]) == "float16"
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert comparison.rounding(mx.float32) == "float32"


def test_reports_are_json() -> None:
    import dataclasses

    (report,) = (r for r in reports(CheckpointSource("tiny")) if r.component == "lm_head")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["blocks"][0]["passed"]


@pytest.mark.slow
def test_the_published_size_with_random_weights() -> None:
    found = reports(RandomSource())
    assert [report.component for report in found] == list(paths.ORDER)
    for report in found:
        assert report.failure is None, report
        # Activations neither vanish nor explode.
        assert all(1e-2 < (block.peak or 0) < 1e4 for block in report.blocks), report
