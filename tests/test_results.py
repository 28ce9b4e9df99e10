from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from random_adapter import write_random_adapter

import mobileo_mlx.checkpoints.hub as hub
from mobileo_mlx import MobileO
from mobileo_mlx.training.lora import LoRAConfig


def drawn(model: str | Path, **options: object) -> dict:
    """The metadata of a picture, as they come back from a file."""
    result = MobileO.load(model, **options).generate("a cat", steps=1, seed=np.int64(3))
    return json.loads(json.dumps(result.metadata()))


def test_metadata_tell_how_the_model_was_loaded(tiny_model: Path) -> None:
    plain = drawn(tiny_model)
    assert (plain["dtype"], plain["quantize"], plain["seed"]) == (None, None, 3)
    asked = drawn(tiny_model, dtype="bfloat16", quantize={"vae": 8})
    assert (asked["dtype"], asked["quantize"]) == ("bfloat16", {"vae_encoder": 8, "vae_decoder": 8})


def test_metadata_serve_in_another_folder(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path_factory.mktemp("work") / "adapter"
    write_random_adapter(adapter, tiny_model, LoRAConfig())
    monkeypatch.chdir(adapter.parent)
    (adapter.parent / "model").symlink_to(tiny_model)
    metadata = drawn("model", adapter="adapter")
    assert metadata["model"] == str(adapter.parent / "model")
    assert metadata["adapter"] == str(adapter)
    monkeypatch.chdir("/")
    assert MobileO.load(metadata["model"], adapter=metadata["adapter"])


def test_a_name_that_is_no_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mobileo_weights

    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert hub.location("small") == str(tmp_path / "small")
    monkeypatch.setattr(mobileo_weights, "bundled", lambda: {"small": tmp_path / "elsewhere"})
    assert hub.location("small") == "small"
    assert hub.location("owner/name") == "owner/name"
