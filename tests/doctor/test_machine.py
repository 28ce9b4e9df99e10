import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mobileo_weights import bundled

from mobileo_mlx.checkpoints import hub, precision
from mobileo_mlx.doctor import machine
from mobileo_mlx.ops import device_settings
from mobileo_mlx.ops.device_settings import DeviceSettings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, in the folder of a user who keeps something there."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(model: Path, cache: Path, repo: str, *, without: str = "") -> None:
    """Caches a model as a repository on the hub, as its client does."""
    store = cache / f"models--{repo.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("abc")
    (store / "blobs").mkdir()
    (store / "blobs" / "0123").write_text("")
    shutil.copytree(model, store / "snapshots" / "abc")
    if without:
        (store / "snapshots" / "abc" / without).unlink()


def test_this_machine() -> None:
    found = machine.describe()
    assert found.chip
    assert found.memory > 2**30
    assert found.packages["mlx"] == mx.__version__  # type: ignore[attr-defined]
    assert found.device in ("CPU", "GPU")
    assert found.cache == "~/hub"
    assert found.settings == {"precision": {}, "forms": {}}
    assert [(model.name, model.state) for model in found.models] == [
        *((name, "bundled") for name in bundled()),
        ("Amshaker/Mobile-O-0.5B", "absent"),
        ("Amshaker/Mobile-O-1.5B", "absent"),
    ]
    assert found.models[-2].nbytes == 3_329_516_200  # as many bytes as two for each parameter of the manifest
    assert found.precision_of == "Amshaker/Mobile-O-0.5B"
    assert len(found.precision) == 8
    assert all(one.reason for one in found.precision)


def test_cached_models_are_found_whole_or_not(cache: Path, tiny_model: Path) -> None:
    put(tiny_model, cache, "Amshaker/Mobile-O-0.5B")
    put(tiny_model, cache, "Amshaker/Mobile-O-1.5B", without="dit.safetensors")
    assert hub.cached_state("Amshaker/Mobile-O-0.5B", cache)[0] == "cached"
    *_, first, second = machine.models()
    assert first.state == "cached"
    assert first.nbytes == sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))
    assert (second.state, second.nbytes) == ("incomplete", 7_655_755_432)


def test_a_cached_file_whose_content_was_removed(cache: Path, tiny_model: Path) -> None:
    put(tiny_model, cache, "Amshaker/Mobile-O-0.5B")
    folder = cache / "models--Amshaker--Mobile-O-0.5B" / "snapshots" / "abc"
    (folder / "unused.safetensors").symlink_to(cache / "nowhere")
    assert machine.models()[-2].nbytes == sum(file.stat().st_size for file in tiny_model.glob("*.safetensors"))


def test_a_download_without_its_tokenizer_is_incomplete(cache: Path, tiny_model: Path) -> None:
    put(tiny_model, cache, "some/model", without="tokenizer.json")
    state, folder = hub.cached_state("some/model", cache)
    assert state == "incomplete"
    assert folder is not None


def test_what_is_stored_for_this_device_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "candidates", lambda *of: (mx.float32, mx.bfloat16))
    device_settings.save(DeviceSettings({"dit": "bfloat16"}, {"conv": "flipped"}))
    found = machine.describe()
    assert found.settings == {"precision": {"dit": "bfloat16"}, "forms": {"conv": "flipped"}}
    assert {one.component: one.dtype for one in found.precision}["dit"] == "bfloat16"


def test_a_mac_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "machdep.cpu.brand_string": "Apple M2 Pro",
        "hw.model": "Mac14,9",
        "hw.perflevel0.physicalcpu": "8",
        "hw.perflevel1.physicalcpu": "4",
        "hw.memsize": str(16 * 2**30),
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_sysctl", lambda name: known.get(name, ""))
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    assert machine._chip() == "Apple M2 Pro (Mac14,9)"
    assert machine._cores() == "8 performance, 4 efficiency"
    assert machine._memory() == 16 * 2**30
    assert machine._system() == "macOS 15.1"


def test_a_gpu_of_another_name_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.backend, "backend", lambda: "metal")
    monkeypatch.setattr(machine, "_chip", lambda: "Apple M2 Pro (Mac14,9)")
    monkeypatch.setattr(machine.backend, "chip_name", lambda: "Apple M2 Pro")
    assert machine.describe().chip == "Apple M2 Pro (Mac14,9)"
    monkeypatch.setattr(machine.backend, "chip_name", lambda: "Apple Paravirtual device")
    assert machine.describe().chip == "Apple M2 Pro (Mac14,9); Apple Paravirtual device"
