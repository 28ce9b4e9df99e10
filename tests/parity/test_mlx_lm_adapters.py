"""Adapters of mlx-lm: what it writes for the language model changes ours as it changes its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

qwen2 = pytest.importorskip("mlx_lm.models.qwen2")
tuner = pytest.importorskip("mlx_lm.tuner.utils")

from mobileo_mlx.checkpoints.adapters import MLX_LM_FILE, Adapter  # noqa: E402
from mobileo_mlx.checkpoints.checkpoint import Checkpoint  # noqa: E402
from mobileo_mlx.checkpoints.modules import named_parameters  # noqa: E402
from mobileo_mlx.errors import CheckpointError  # noqa: E402
from mobileo_mlx.pipeline import MobileO  # noqa: E402


def build(tiny_model: Path) -> Any:
    """mlx-lm's language model with the small model's weights."""
    config = Checkpoint.open(tiny_model).config
    arguments = config.llm.to_dict() | {"model_type": "qwen2", "tie_word_embeddings": False}
    model = qwen2.Model(qwen2.ModelArgs.from_dict(arguments))
    parts = MobileO.load(tiny_model, dtype="float32").parts
    weights = {f"model.{name}": array for name, array in named_parameters(parts["llm"]).items()}
    weights |= {f"lm_head.{name}": array for name, array in named_parameters(parts["lm_head"]).items()}
    model.load_weights(list(weights.items()), strict=True)
    return model.eval()


def write(folder: Path, model: Any, config: dict[str, Any]) -> None:
    """Trains nothing, but writes what training would, and as it would."""
    model.freeze()
    if config["fine_tune_type"] == "full":
        for layer in model.layers[-max(config["num_layers"], 0) :]:
            layer.unfreeze()
    else:
        parameters = config["lora_parameters"]
        tuner.linear_to_lora_layers(model, config["num_layers"], parameters, config["fine_tune_type"] == "dora")
    tensors = dict(tree_flatten(model.trainable_parameters()))
    key = mx.random.key(0)
    for name in sorted(tensors):
        key, own = mx.random.split(key)
        tensors[name] = tensors[name] + 0.1 * mx.random.normal(tensors[name].shape, key=own)
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / MLX_LM_FILE), tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def fused(model: Any, folder: Path) -> dict[str, mx.array]:
    """The weights with an adapter merged, as mlx-lm loads and merges it."""
    tuner.load_adapters(model, str(folder))
    layers = [(name, layer.fuse()) for name, layer in model.named_modules() if hasattr(layer, "fuse")]
    model.update_modules(tuner.tree_unflatten(layers))
    return dict(tree_flatten(model.parameters()))


ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 3, "scale": 2.5}}, 14),
        (
            {
                "fine_tune_type": "lora",
                "num_layers": -1,
                "lora_parameters": {"rank": 4, "scale": 10, "keys": [*ATTENTION, "lm_head"]},
            },
            11,
        ),
        (
            {
                "fine_tune_type": "dora",
                "num_layers": 3,
                "lora_parameters": {"rank": 4, "scale": 1.5, "keys": [*ATTENTION, "mlp.down_proj"]},
            },
            9,
        ),
        ({"fine_tune_type": "full", "num_layers": 1, "lora_parameters": None}, 12),
    ],
)
def test_theirs_in(tiny_model: Path, tmp_path: Path, config: dict[str, Any], count: int) -> None:
    if config["lora_parameters"]:
        config["lora_parameters"]["dropout"] = 0.0
    plain = dict(tree_flatten(build(tiny_model).parameters()))
    write(tmp_path, build(tiny_model), config)
    expected = fused(build(tiny_model), tmp_path)
    parts = MobileO.load(tiny_model, adapter=tmp_path, dtype="float32").parts
    ours = {f"model.{name}": array for name, array in named_parameters(parts["llm"]).items()}
    ours |= {f"lm_head.{name}": array for name, array in named_parameters(parts["lm_head"]).items()}
    assert ours.keys() == expected.keys() == plain.keys()
    for name, array in ours.items():
        assert mx.allclose(array, expected[name], rtol=1e-5, atol=1e-6), name
    assert sum(not mx.array_equal(ours[name], plain[name]) for name in plain) == count


def test_the_layers_that_a_configuration_names_are_there(tiny_model: Path, tmp_path: Path) -> None:
    parameters = {"rank": 4, "scale": 10, "dropout": 0.0, "keys": ATTENTION}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": "someone/theirs"}
    write(tmp_path, build(tiny_model), config)
    Adapter.open(tmp_path).check(Checkpoint.open(tiny_model))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"the adapter lacks llm\.layers\.2\.self_attn\.q_proj, llm\.layers\.2"):
        Adapter.open(tmp_path).check(Checkpoint.open(tiny_model))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fine_tune_type": "prefix"}, "has fine_tune_type 'prefix'"),
        ({"lora_parameters": None}, "has lora_parameters = None"),
        ({"lora_parameters": {"rank": 4}}, r"has lora_parameters\.scale = None"),
        ({"lora_parameters": {"rank": True, "scale": 1}}, r"has lora_parameters\.rank = True"),
        (
            {"lora_parameters": {"rank": 4, "scale": 1e5}},
            r"lora_parameters\.scale = 100000\.0; 10,000 is the limit",
        ),
        ({"lora_parameters": {"rank": 5, "scale": 1}}, r"of the wrong shape are .* \(64, 4\) instead of \(64, 5\)"),
        ({"fine_tune_type": "dora"}, "has only a part of lora_A, lora_B and lora_magnitude_vector"),
        ({"num_layers": "4"}, "has num_layers = '4'; it has to be a whole number"),
    ],
)
def test_what_cannot_be(tiny_model: Path, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    parameters = {"rank": 4, "scale": 10, "dropout": 0.0, "keys": ATTENTION}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    write(tmp_path, build(tiny_model), config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=reason):
        Adapter.open(tmp_path).check(Checkpoint.open(tiny_model))
