"""Low-rank updates: beside the layers, written, read, merged; and the PEFT library as the other side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from random_adapter import adapted_modules, write_random_adapter
from safetensors.numpy import load_file, save_file

from mobileo_mlx.checkpoints.adapters import CONFIG_FILE, TRAINED_FILE, WEIGHTS_FILE, Adapter
from mobileo_mlx.checkpoints.apply_adapters import AdaptedLinear
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, describe, fuse
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.errors import CheckpointError, OptionError, OutputError
from mobileo_mlx.models.mobileo import build
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.training.lora import (
    Dropout,
    LoRAConfig,
    add_lora,
    load_lora,
    set_dropout_key,
    start_from,
    write_adapter,
)

BOTH = LoRAConfig(rank=4, alpha=8, components=("llm", "dit"))


def states(llm: nn.Module) -> mx.array:
    return llm(llm.embed_tokens(mx.arange(20)[None]))


def velocity(dit: nn.Module) -> mx.array:
    text = mx.random.normal((1, 7, dit.config.caption_channels), key=mx.random.key(1))
    latents = mx.random.normal((1, 3, 5, dit.config.in_channels), key=mx.random.key(2))
    return dit(latents, mx.array([400.0]), dit.encode_text(text))


def error(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max() / mx.abs(b).max())


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = named_parameters(a), named_parameters(b)
    return left.keys() == right.keys() and all(mx.array_equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the language model and the DiT."""
    folder = tmp_path_factory.mktemp("adapters") / "both"
    write_random_adapter(folder, tiny_model, BOTH)
    return folder


@pytest.fixture
def spoilt(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the adapter with changes."""

    def make(
        config: dict[str, Any] | None = None, tensors: Callable[[dict[str, np.ndarray]], object] | None = None
    ) -> Path:
        folder = tmp_path / "spoilt"
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps(json.loads((adapter / CONFIG_FILE).read_text()) | (config or {})))
        values = load_file(adapter / WEIGHTS_FILE)
        if tensors is not None:
            tensors(values)
        save_file(values, folder / WEIGHTS_FILE)
        return folder

    return make


# Beside the layers


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"rank": 0}, "rank of an adapter is 0"),
        ({"rank": -4}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"components": ("vae_decoder",)}, "vae_decoder can't be adapted"),
        ({"components": ()}, "nothing can't be adapted"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        LoRAConfig(**values)


def test_an_update_begins_as_nothing(tiny_model: Path) -> None:
    model = MobileO.load(tiny_model, dtype="float32")
    llm, dit = model.parts.llm, model.parts.dit
    before = states(llm), velocity(dit)
    for module in (llm, dit):
        module.freeze()
    add_lora({"llm": llm, "dit": dit}, BOTH, key=mx.random.key(0))
    assert mx.array_equal(states(llm), before[0])
    assert mx.array_equal(velocity(dit), before[1])


def test_which_layers_are_updated(tiny_model: Path) -> None:
    modules = adapted_modules(tiny_model, BOTH)
    config = Checkpoint.open(tiny_model).config
    trainable = {name: modules[name].trainable_parameters() for name in modules}
    names = {name: {key.rpartition(".")[0] for key in named(trainable[name])} for name in modules}
    assert len(names["llm"]) == 7 * config.llm.num_hidden_layers
    assert len(names["dit"]) == 10 * config.dit.num_layers
    leaves = {key.rpartition(".")[2] for name in modules for key in named(trainable[name])}
    assert leaves == {"lora_a", "lora_b"}


def named(tree: Any) -> list[str]:
    return [name for name, _ in tree_flatten(tree)]


def test_the_key_decides(tiny_model: Path) -> None:
    def made(seed: int) -> mx.array:
        llm = build("llm", Checkpoint.open(tiny_model).config)
        add_lora({"llm": llm}, LoRAConfig(rank=4), key=mx.random.key(seed))
        return llm.layers[0].mlp.up_proj.lora_a

    assert mx.array_equal(made(3), made(3))
    assert not mx.array_equal(made(3), made(4))
    assert float(mx.abs(made(3)).max()) <= made(3).shape[0] ** -0.5


def test_dropout_is_a_function_of_its_key(tiny_model: Path) -> None:
    llm = adapted_modules(tiny_model, LoRAConfig(rank=4, dropout=0.5))["llm"]
    still = states(llm)
    llm.train()
    seen = []
    for seed in (1, 1, 2):
        set_dropout_key(llm, mx.random.key(seed))
        seen.append(states(llm))
    assert mx.array_equal(seen[0], seen[1])
    assert not mx.array_equal(seen[0], seen[2])
    assert error(seen[0], still) > 0.01


def test_dropout_keeps_the_mean() -> None:
    layer = Dropout(0.25)
    x = mx.ones((4000,))
    with pytest.raises(RuntimeError, match="set_dropout_key"):
        layer(x)
    set_dropout_key(layer, mx.random.key(0))
    y = layer(x)
    assert float(y.mean()) == pytest.approx(1, abs=0.03)
    assert 0.2 < float((y == 0).mean()) < 0.3
    assert mx.array_equal(layer.eval()(x), x)


def test_the_gradient_is_that_of_the_same_mask_with_checkpointing(tiny_model: Path) -> None:
    llm = adapted_modules(tiny_model, LoRAConfig(rank=4, dropout=0.5))["llm"].train()
    set_dropout_key(llm, mx.random.key(1))
    block = llm.layers[0]
    x = mx.random.normal((1, 6, llm.embed_tokens.weight.shape[1]), key=mx.random.key(2))

    def gradient(call: Callable[..., mx.array]) -> dict[str, mx.array]:
        grads = nn.value_and_grad(block, lambda m: (call(x, "causal", None) ** 2).sum())(block)[1]
        return dict(tree_flatten(grads))

    plain, recomputed = gradient(block), gradient(nn.utils.checkpoint(block))
    assert plain.keys() == recomputed.keys()
    assert all(error(recomputed[name], plain[name]) < 1e-5 for name in plain)


# Written, read and merged


@pytest.mark.parametrize("config", [BOTH, LoRAConfig(rank=3, alpha=1.5), LoRAConfig(rank=1, components=("dit",))])
def test_merged_is_what_was_trained(tiny_model: Path, tmp_path: Path, config: LoRAConfig) -> None:
    trained = write_random_adapter(tmp_path / "adapter", tiny_model, config)
    base = MobileO.load(tiny_model, dtype="float32")
    model = MobileO.load(tiny_model, adapter=tmp_path / "adapter", dtype="float32")
    for name, output in (("llm", states), ("dit", velocity)):
        merged = model.parts[name]
        assert named_parameters(merged).keys() == named_parameters(base.parts[name]).keys()
        if name in config.components:
            assert error(output(merged), output(trained[name])) < 1e-5
            assert error(output(merged), output(base.parts[name])) > 0.01
        else:
            assert same(merged, base.parts[name])


def test_an_adapter_can_be_trained_further(tiny_model: Path, tmp_path: Path) -> None:
    trained = write_random_adapter(tmp_path / "adapter", tiny_model, BOTH)
    loaded = MobileO.load(tiny_model, dtype="float32")
    modules = {name: loaded.parts[name] for name in BOTH.components}
    load_lora(modules, Adapter.open(tmp_path / "adapter"))
    assert all(same(modules[name], trained[name]) for name in modules)


def test_magnitudes_are_not_trained_further(spoilt, tiny_model: Path) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if ".lora_B." in name]:
            rows = len(tensors[name])
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = np.ones(rows, np.float32)

    opened = Adapter.open(spoilt({"use_dora": True}, add))
    model = MobileO.load(tiny_model, dtype="float32")
    modules = {name: model.parts[name] for name in BOTH.components}
    for start in (load_lora, lambda *given: start_from(*given, BOTH, model.config)):
        with pytest.raises(OptionError, match=r"has magnitudes \(DoRA\), which are not trained here"):
            start(modules, opened)


def test_the_scale_goes_from_the_model_to_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_random_adapter(folder, tiny_model, full=("diffusion_connector",))

    def load(scale: float) -> MobileO:
        return MobileO.load(tiny_model, adapter=folder, adapter_scale=scale, dtype="float32")

    base = MobileO.load(tiny_model, dtype="float32")
    none, half, whole = load(0), load(0.5), load(1)
    for name in ("llm", "diffusion_connector"):
        assert same(none.parts[name], base.parts[name])
        ends = [named_parameters(model.parts[name]) for model in (base, whole)]
        for key, value in named_parameters(half.parts[name]).items():
            assert mx.allclose(value, (ends[0][key] + ends[1][key]) / 2, atol=1e-6)
    with pytest.raises(OptionError, match="scale is nan"):
        load(float("nan"))


def test_only_what_is_used_is_loaded(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_adapter(tmp_path / "adapter", tiny_model, BOTH, full=("vision_tower", "diffusion_connector"))
    model = MobileO.load(tiny_model, adapter=tmp_path / "adapter", dtype="float32")
    read: list[str] = []
    network = Checkpoint.network
    monkeypatch.setattr(Checkpoint, "network", lambda *a: read.append(a[1]) or network(*a))
    result = model.generate("a cat", steps=1)
    assert sorted(read) == ["diffusion_connector", "dit", "llm", "vae_decoder"]
    assert result.metadata()["adapter"] == str(tmp_path / "adapter")
    assert result.metadata()["adapter_scale"] == 1.0
    assert "adapter" not in MobileO.load(tiny_model, dtype="float32").generate("a cat", steps=1).metadata()


@pytest.mark.parametrize("component", ["vision_tower", "mm_projector", "diffusion_connector", "dit", "llm", "lm_head"])
def test_parts_trained_in_full(tiny_model: Path, tmp_path: Path, component: str) -> None:
    loaded = MobileO.load(tiny_model, dtype="float32").parts[component]
    loaded.apply(lambda x: 1.25 * x)
    write_adapter(tmp_path, {component: loaded}, None, base_model=tiny_model)
    assert [path.name for path in tmp_path.iterdir()] == [TRAINED_FILE]
    assert load_file(tmp_path / TRAINED_FILE).keys() == {f"{component}.{name}" for name in named_parameters(loaded)}
    assert same(MobileO.load(tiny_model, adapter=tmp_path, dtype="float32").parts[component], loaded)


def test_updates_beside_layers_trained_in_full(tiny_model: Path, tmp_path: Path) -> None:
    trained = write_random_adapter(tmp_path / "adapter", tiny_model, BOTH, full=("dit",))["dit"]
    assert not any(
        "linear" in name or "lora" in name for name in load_file(tmp_path / "adapter" / TRAINED_FILE) if "attn" in name
    )
    dit = MobileO.load(tiny_model, adapter=tmp_path / "adapter", dtype="float32").parts.dit
    assert error(velocity(dit), velocity(trained)) < 1e-5


@pytest.mark.parametrize(
    ("name", "base", "revision"),
    [("a/b", "a/b", None), ("a/b@v1", "a/b", "v1"), ("here/b@v1", "here/b@v1", None), ("tiny", "tiny", None)],
)
def test_the_base_model_is_named_as_in_peft(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    base: str,
    revision: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "b@v1").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    config = LoRAConfig(rank=2)
    write_adapter(tmp_path / "adapter", adapted_modules(tiny_model, config), config, base_model=name)
    written = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    assert (written["base_model_name_or_path"], written.get("revision")) == (base, revision)


def test_files_that_are_not_needed_any_more_go(tiny_model: Path, tmp_path: Path) -> None:
    config = LoRAConfig(rank=2)
    modules = adapted_modules(tiny_model, config, full=("mm_projector",))
    write_adapter(tmp_path, modules, config, base_model="tiny")
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, TRAINED_FILE}
    modules["mm_projector"].freeze()
    write_adapter(tmp_path, modules, config, base_model="tiny")
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    modules["mm_projector"].unfreeze()
    write_adapter(tmp_path, {"mm_projector": modules["mm_projector"]}, None, base_model="tiny")
    assert {path.name for path in tmp_path.iterdir()} == {TRAINED_FILE}


def test_half_precision_is_rounded_once(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    convert(tiny_model, tmp_path / "half", dtype="bfloat16")
    exact = MobileO.load(tmp_path / "half", dtype="float32", adapter=adapter).parts.llm
    half = MobileO.load(tmp_path / "half", dtype="bfloat16", adapter=adapter).parts.llm
    weight = half.layers[1].mlp.up_proj.weight
    assert weight.dtype == mx.bfloat16
    assert mx.array_equal(weight, exact.layers[1].mlp.up_proj.weight.astype(mx.bfloat16))


# Quantized


def test_beside_quantized_weights_the_update_is_exact(tiny_model: Path, adapter: Path) -> None:
    bits = {"llm": 4, "dit": 8}
    base = MobileO.load(tiny_model, dtype="float32", quantize=bits)
    model = MobileO.load(tiny_model, dtype="float32", quantize=bits, adapter=adapter)
    updates = MobileO.load(tiny_model, dtype="float32")
    trained = {name: updates.parts[name] for name in bits}
    load_lora(trained, Adapter.open(adapter))
    for name, path in (("llm", "layers.2.self_attn.q_proj"), ("dit", "transformer_blocks.1.ff.conv_point")):
        layer, plain, lora = (at(m, path) for m in (model.parts[name], base.parts[name], trained[name]))
        assert isinstance(layer, AdaptedLinear)
        for rows in (1, 50):
            x = mx.random.normal((rows, lora.lora_a.shape[0]), key=mx.random.key(rows))
            assert error(layer(x), plain(x) + lora.scale * (x @ lora.lora_a @ lora.lora_b)) < 1e-5


def at(module: Any, path: str) -> Any:
    for key in path.split("."):
        module = module[int(key)] if key.isdecimal() else module[key]
    return module


def test_updates_beside_quantized_weights_learn(tiny_model: Path, tmp_path: Path) -> None:
    bits, config = {"llm": 8}, LoRAConfig(rank=2, dropout=0)
    llm = MobileO.load(tiny_model, dtype="float32", quantize=bits).parts.llm
    llm.freeze()
    add_lora({"llm": llm}, config, key=mx.random.key(0))
    loss, before = nn.value_and_grad(llm, lambda module: (states(module) ** 2).mean()), states(llm)
    first, gradient = loss(llm)
    assert len(named(gradient)) == 2 * 35
    llm.update(tree_map(lambda w, g: w - 0.3 * g, llm.trainable_parameters(), gradient))
    assert loss(llm)[0] < first
    write_adapter(tmp_path, {"llm": llm}, config, base_model=tiny_model)
    adapted = states(MobileO.load(tiny_model, dtype="float32", quantize=bits, adapter=tmp_path).parts.llm)
    assert error(adapted, states(llm)) < 1e-5
    assert error(before, states(llm)) > 1e-3


def test_quantized_while_loading_or_before_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    folder, bits = tmp_path / "adapter", {"llm": 4, "dit": 8}
    write_random_adapter(folder, tiny_model, BOTH, full=("dit",))
    convert(tiny_model, tmp_path / "small", quantize=bits)
    for scale in (1.0, 0.5):
        a = MobileO.load(tmp_path / "small", adapter=folder, adapter_scale=scale, dtype="float32")
        b = MobileO.load(tiny_model, quantize=bits, adapter=folder, adapter_scale=scale, dtype="float32")
        for name in bits:
            assert same(a.parts[name], b.parts[name])


def test_a_part_trained_in_full_is_quantized_as_the_model_is(tiny_model: Path, tmp_path: Path) -> None:
    loaded = MobileO.load(tiny_model, dtype="float32").parts.dit
    loaded.apply(lambda x: x + 0.1)
    write_adapter(tmp_path, {"dit": loaded}, None, base_model=tiny_model)
    fuse(tiny_model, tmp_path, tmp_path / "fused")
    adapted = MobileO.load(tiny_model, quantize={"dit": 4}, adapter=tmp_path, dtype="float32").parts.dit
    assert same(adapted, MobileO.load(tmp_path / "fused", quantize={"dit": 4}, dtype="float32").parts.dit)


# Fused


def test_fused_is_the_same_as_adapted(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_random_adapter(folder, tiny_model, BOTH, full=("vision_tower",))
    written: list[str] = []
    info = fuse(tiny_model, folder, tmp_path / "fused", scale=0.7, progress=written.append)
    assert info == describe(tmp_path / "fused")
    assert info.parameters == describe(tiny_model).parameters
    adapted, fused = (
        MobileO.load(tiny_model, adapter=folder, adapter_scale=0.7, dtype="float32"),
        MobileO.load(tmp_path / "fused", dtype="float32"),
    )
    for part in info.components:
        assert same(adapted.parts[part.name], fused.parts[part.name])
    assert written == [part.name for part in info.components]


def test_what_cannot_be_fused(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    convert(tiny_model, tmp_path / "small", quantize={"llm": 4})
    with pytest.raises(OptionError, match=r"llm of .*small' is quantized"):
        fuse(tmp_path / "small", adapter, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    with pytest.raises(OutputError, match="exists already"):
        fuse(tiny_model, adapter, tmp_path / "small")


def test_what_the_adapter_leaves_alone_may_be_quantized(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    convert(tiny_model, tmp_path / "small", quantize={"vae_decoder": 8})
    info = fuse(tmp_path / "small", adapter, tmp_path / "fused", dtype="float16")
    assert {part.name: part.bits for part in info.components if part.bits} == {"vae_decoder": 8}
    assert {part.dtype for part in info.components} == {"float16"}


# Refused


def refused(folder: Path, model: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        MobileO.load(model, adapter=folder, dtype="float32")
    return str(caught.value)


def test_no_adapter(tiny_model: Path, tmp_path: Path) -> None:
    assert "nowhere' holds no adapter" in refused(tmp_path / "nowhere", tiny_model)
    assert "holds no adapter" in refused(tiny_model, tiny_model)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_half_an_adapter(spoilt, tiny_model: Path, name: str) -> None:
    folder = spoilt()
    (folder / name).unlink()
    assert f"{name}' can't be read" in refused(folder, tiny_model)


def test_a_file_cut_short(spoilt, tiny_model: Path) -> None:
    folder = spoilt()
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[:-100])
    assert "cut short" in refused(folder, tiny_model)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "only a part of lora_A, lora_B and lora_magnitude_vector of model"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"rank_pattern": {"q_proj": 0}}, "has rank_pattern = .*a map from texts to"),
        ({"rank_pattern": {"q_proj": 8}}, r"\(4, 64\) instead of \(8, 64\)"),
    ],
)
def test_a_configuration_of_another_kind(spoilt, tiny_model: Path, config: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refused(spoilt(config), tiny_model))


def test_an_adapter_of_another_size_lists_all(adapter: Path, tmp_path: Path, tiny_model: Path, reference: Path) -> None:
    checkpoint = Checkpoint.open(reference / "tiny" / "checkpoint", partial=True)
    with pytest.raises(CheckpointError) as caught:
        Parts(checkpoint, adapters=[Adapter.open(adapter)])
    text = str(caught.value)
    assert f"is for another model than '{checkpoint.name}' (it was made for '{tiny_model}')" in text
    assert "dit.transformer_blocks.0.ff.conv_point.lora_B.weight (64, 4, 1, 1) instead of (96, 4)" in text
    assert re.search(r"and \d+ more\.$", text)


def test_names_that_the_model_does_not_have(spoilt, tiny_model: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for letter in "AB":
            name = f"base_model.model.model.layers.{{}}.mlp.up_proj.lora_{letter}.weight"
            tensors[name.format(70)] = tensors[name.format(0)]
        tensors["base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"] = np.ones(3, np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((128, 64), np.float32)

    text = refused(spoilt(tensors=change), tiny_model)
    for name in ("layers.70.mlp.up_proj.lora_A", "lora_magnitude_vector", "model.layers.0.mlp.up_proj.weight"):
        assert name in text


def test_layers_that_the_adapter_lacks(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_random_adapter(folder, tiny_model)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: value for name, value in tensors.items() if ".layers.4." not in name}, folder / WEIGHTS_FILE)
    assert "the adapter lacks llm.layers.4.mlp.down_proj, llm.layers.4.mlp.gate_proj" in refused(folder, tiny_model)


def test_one_factor_alone(spoilt, tiny_model: Path) -> None:
    name = "model.dit.transformer_blocks.0.attn1.to_q"
    text = refused(spoilt(tensors=lambda tensors: tensors.pop(f"base_model.model.{name}.lora_B.weight")), tiny_model)
    assert f"only a part of lora_A and lora_B of {name}" in text


def test_an_adapter_that_changes_nothing(spoilt, tiny_model: Path) -> None:
    assert "changes nothing" in refused(spoilt(tensors=lambda tensors: tensors.clear()), tiny_model)


def test_trained_parts_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    values = {
        "mm_projector.layers.0.bias": np.zeros(3, np.float32),
        "dit.nothing.weight": np.zeros(3, np.float32),
        "optimizer.step": np.zeros(3, np.float32),
    }
    save_file(values, tmp_path / TRAINED_FILE)
    text = refused(tmp_path, tiny_model)
    assert "the model does not have dit.nothing.weight, optimizer.step" in text
    assert "mm_projector.layers.0.bias (3,) instead of (64,)" in text
