"""Adapters on disk: configurations that can't be, files that are not read, several at once, DoRA beside packed weights.

How single updates are written, read and merged is tested with training; what PEFT and mlx-lm make of theirs with them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from random_adapter import write_random_adapter
from safetensors.numpy import load_file, save_file

from mobileo_mlx.checkpoints.adapters import (
    CONFIG_FILE,
    MLX_LM_FILE,
    TRAINED_FILE,
    WEIGHTS_FILE,
    Adapter,
    open_adapters,
)
from mobileo_mlx.checkpoints.apply_adapters import AdaptedLinear
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import fuse
from mobileo_mlx.checkpoints.modules import get_submodule, named_parameters
from mobileo_mlx.errors import CheckpointError, OptionError
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.training.lora import LoRAConfig

LLM = LoRAConfig(rank=4, alpha=8)
DIT = LoRAConfig(rank=2, alpha=3, components=("dit",))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the language model, and of the connector in full."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    write_random_adapter(folder, tiny_model, LLM, full=("diffusion_connector",))
    return folder


@pytest.fixture
def changed(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the adapter with other settings and tensors."""

    def make(
        name: str = "changed", *, tensors: Callable[[dict[str, Any]], object] | None = None, **config: Any
    ) -> Path:
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        settings = json.loads((folder / CONFIG_FILE).read_text()) | config
        (folder / CONFIG_FILE).write_text(json.dumps(settings))
        if tensors is not None:
            values = load_file(folder / WEIGHTS_FILE)
            tensors(values)
            save_file(values, folder / WEIGHTS_FILE)
        return folder

    return make


def refused(folder: str | Path, model: Path | None = None) -> str:
    checkpoint = Checkpoint.open(model or "tiny")
    with pytest.raises(CheckpointError) as caught:
        Adapter.open(folder).check(checkpoint)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Configurations

WRONG: dict[str, list[Any]] = {
    "r": [None, 0, -1, True, 4.0, "4", [4], 2**17, 10**200],
    "lora_alpha": [None, False, "8", [8], 1e10, 10**200],
    "rank_pattern": [[], "q_proj", {"q_proj": 0}, {"q_proj": 1.5}, {"q_proj": True}, {"q_proj": None}],
    "alpha_pattern": [[], 3, {"q_proj": "3"}, {"q_proj": None}, {"q_proj": -1e10}],
    "use_rslora": [1, "yes", []],
    "use_dora": [1, "no", {}],
    "target_modules": [3, [3], {"q_proj": 1}, [["q_proj"]]],
    "exclude_modules": [3, [None]],
    "modules_to_save": ["lm_head", [3]],
    "layers_to_transform": ["3", [True], [1.5], {}],
    "layers_pattern": [3, [3]],
    "bias": [3, ["none"]],
    "base_model_name_or_path": [3, ["a"], {}],
    "init_lora_weights": [3, ["gaussian"], {}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_values_of_the_wrong_type_or_range(changed, key: str, value: Any) -> None:
    folder = changed(**{key: value})
    text = refused(folder)
    assert f"'{folder / CONFIG_FILE}' has {key} = " in text
    assert "; it has to be " in text
    assert len(text) < 400


@pytest.mark.parametrize("text", ["", "[]", "null", '{"r": ' + "9" * 400 + "}", "[" * 100_000, '{"r": NaN}', "\x00"])
def test_a_configuration_that_is_none(changed, text: str) -> None:
    folder = changed()
    (folder / CONFIG_FILE).write_text(text)
    assert f"'{folder / CONFIG_FILE}' " in refused(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_qalora", True),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["a.weight"]),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
    ],
)
def test_what_can_not_be_applied_is_refused_by_name(changed, key: str, value: Any) -> None:
    assert f"asks for {key}" in refused(changed(**{key: value}))


def test_settings_of_a_later_version_are_said(changed, tiny_model: Path) -> None:
    model = MobileO.load(tiny_model, adapter=changed(use_tomorrow={"a": 1}, not_used=False))
    (note,) = model.notes
    assert note.endswith("has settings that are not known here and are left out: use_tomorrow.")


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "text", ["(.+)+@", "(a*)*b", "(?:(?:x+x+)+y)*", "(?=(a+))a*b", "(.*)(.*)\\2@", "(", "[", "a" * 5000]
)
def test_expressions_that_python_might_never_finish(changed, key: str, text: str) -> None:
    message = refused(changed(**{key: {text: 4}}))
    assert f"in {key}, which has " in message
    assert len(message) < 400


def test_too_many_expressions(changed) -> None:
    text = refused(changed(rank_pattern={f"{'.*' * 1000}x{number}": 4 for number in range(500)}))
    assert "has too many expressions in rank_pattern for 35 layers" in text


def test_an_expression_for_targets_that_is_not_understood_does_not_matter(changed, tiny_model: Path) -> None:
    """It only says which layers there should be."""
    Adapter.open(changed(target_modules=r"(?!.*vision).*_proj")).check(Checkpoint.open(tiny_model))


def test_targets_that_the_adapter_lacks(changed, tiny_model: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.2.mlp.up_proj." in name]:
            del tensors[name]

    missing = "the adapter lacks llm.layers.2.mlp.up_proj"
    assert missing in refused(changed("list", tensors=cut), tiny_model)
    assert missing in refused(changed("text", tensors=cut, target_modules=r"model\.layers\.\d+\..*_proj"), tiny_model)
    kept = {
        "excluded": {"exclude_modules": r".*\.2\.mlp\..*"},
        "excluded-list": {"exclude_modules": ["2.mlp.up_proj"]},
        "saved": {"modules_to_save": [r"layers\.2"]},
        "layers": {"layers_to_transform": [0, 1, 3, 4]},
    }
    for name, settings in kept.items():
        Adapter.open(changed(name, tensors=cut, **settings)).check(Checkpoint.open(tiny_model))


# Tensors


@pytest.mark.parametrize("file", [WEIGHTS_FILE, TRAINED_FILE])
def test_types_are_checked_as_those_of_a_model(changed, tiny_model: Path, file: str) -> None:
    folder = changed()
    tensors = load_file(folder / file)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].astype(np.float64)}, folder / file)
    expected = MobileO.load(tiny_model, adapter=changed("plain"), dtype="float32").parts
    found = MobileO.load(tiny_model, adapter=folder, dtype="float32").parts
    for component in ("llm", "diffusion_connector"):
        assert same(found[component], expected[component])
    save_file(tensors | {name: tensors[name].astype(np.int32)}, folder / file)
    assert f"holds tensors of types that can't be what they are for: {name} (I32)" in refused(folder)


def test_updates_of_embeddings(changed, tiny_model: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.zeros((4, 406), np.float32)

    assert "has low-rank updates of embeddings (base_model.model.model.embed_tokens.lora_emb" in refused(
        changed(tensors=add), tiny_model
    )


def test_updates_of_layers_that_take_none(changed, tiny_model: Path) -> None:
    name = "base_model.model.model.dit.transformer_blocks.0.ff.conv_depth.lora_{}.weight"

    def add(tensors: dict[str, Any]) -> None:
        tensors[name.format("A")] = np.zeros((4, 1, 3, 3), np.float32)
        tensors[name.format("B")] = np.zeros((320, 4, 1, 1), np.float32)

    assert f"of layers that are not linear are {name.format('A')}" in refused(changed(tensors=add), tiny_model)


def test_names_that_are_far_too_long(changed) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.model.layers." + ".lora_A" * 20_000 + ".weight"] = np.zeros(1, np.float32)

    assert "the model does not have" in refused(changed(tensors=add))


def same(a: Any, b: Any) -> bool:
    left, right = named_parameters(a), named_parameters(b)
    return left.keys() == right.keys() and all(mx.array_equal(left[name], right[name]) for name in left)


# Folders


def test_a_checkpoint_of_a_run_is_an_adapter(adapter: Path, tmp_path: Path, tiny_model: Path) -> None:
    """With the optimizer's state beside it, which says nothing about the model."""
    step = tmp_path / "run" / "step-0000100"
    shutil.copytree(adapter, step)
    (step / "state.json").write_text("{}")
    shutil.copy(adapter / TRAINED_FILE, step / "optimizer.safetensors")
    opened = Adapter.open(step)
    opened.check(Checkpoint.open(tiny_model))
    assert opened.components == {"llm", "diffusion_connector"}
    assert opened.notes == ()
    assert "holds no adapter" in refused(tmp_path / "run")
    assert f"its last checkpoint, '{step}', does" in refused(tmp_path / "run")
    shutil.copytree(adapter, tmp_path / "run", dirs_exist_ok=True)
    assert Adapter.open(tmp_path / "run").path == tmp_path / "run"


def test_pickles_are_never_read_and_always_named(adapter: Path, changed, tiny_model: Path) -> None:
    folder = changed()
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "._non_lora_trainables.bin"):
        (folder / name).write_bytes(b"no pickle")
    assert Adapter.open(folder).notes == ()
    for name in ("non_lora_trainables.bin", "extra.pt"):
        (folder / name).write_bytes(b"no pickle")
    (note,) = Adapter.open(folder).notes
    assert note.startswith(f"extra.pt, non_lora_trainables.bin in '{folder}' are not read")
    said: list[str] = []
    fuse(tiny_model, folder, folder.parent / "fused", note=said.append)
    assert said == [note]


def test_other_tensors_beside_an_adapter_are_named(adapter: Path, changed) -> None:
    folder = changed()
    for name in ("optimizer.safetensors", "0000100_adapters.safetensors"):
        shutil.copy(adapter / WEIGHTS_FILE, folder / name)
    assert Adapter.open(folder).notes == ()
    for name in (MLX_LM_FILE, "non_lora_trainables.safetensors"):
        shutil.copy(adapter / WEIGHTS_FILE, folder / name)
    (note,) = Adapter.open(folder).notes
    assert note.startswith(f"adapters.safetensors, non_lora_trainables.safetensors in '{folder}' are not read")


def test_the_documented_way_to_add_a_pickle(changed, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LLaVA's training leaves beside an adapter, under PEFT's names, is then read with the rest."""
    torch = pytest.importorskip("torch")
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    folder = changed()
    bias = torch.arange(64.0)
    torch.save({"base_model.model.model.mm_projector.0.bias": bias}, folder / "non_lora_trainables.bin")
    monkeypatch.chdir(folder)
    exec(code, {})
    (folder / "non_lora_trainables.bin").unlink()
    model = MobileO.load(tiny_model, adapter=folder, dtype="float32")
    assert mx.array_equal(model.parts.mm_projector.layers[0].bias, mx.arange(64.0))
    assert Adapter.open(folder).components == {"llm", "diffusion_connector", "mm_projector"}


def test_an_adapter_that_is_a_pickle(changed) -> None:
    folder = changed()
    (folder / WEIGHTS_FILE).unlink()
    (folder / TRAINED_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"no pickle")
    text = refused(folder)
    assert "as a pickle, adapter_model.bin" in text
    assert "safetensors.torch.save_file" in text


def test_places_that_are_no_folder(adapter: Path, tmp_path: Path) -> None:
    assert "is a file; give the folder that holds the adapter" in refused(adapter / WEIGHTS_FILE)
    os.mkfifo(tmp_path / "pipe")
    assert "give the folder" in refused(tmp_path / "pipe")
    assert "can't be read" in refused("a\0b")
    assert "can't be read" in refused("a" * 5000)
    assert "holds no adapter" in refused("~nobody-of-this-name/adapter")
    folder = tmp_path / "half"
    folder.mkdir()
    shutil.copy(adapter / CONFIG_FILE, folder)
    assert f"'{folder / WEIGHTS_FILE}' can't be read" in refused(folder)
    os.mkfifo(folder / WEIGHTS_FILE)
    assert f"'{folder / WEIGHTS_FILE}' is not a regular file" in refused(folder)


# Several


@pytest.fixture(scope="module")
def others(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters: of the language model and the connector, of the DiT, and of both networks' updates again."""
    folder = tmp_path_factory.mktemp("several")
    write_random_adapter(folder / "a", tiny_model, LLM, full=("diffusion_connector",))
    write_random_adapter(folder / "b", tiny_model, DIT)
    write_random_adapter(
        folder / "c", tiny_model, LoRAConfig(3, 9, components=("llm", "dit")), ("diffusion_connector",)
    )
    return [folder / name for name in "abc"]


def test_several_add_up(tiny_model: Path, others: list[Path]) -> None:
    scales = [1.0, -0.5, 2.0]
    base = MobileO.load(tiny_model, dtype="float32").parts
    together = MobileO.load(tiny_model, adapter=others, adapter_scale=scales, dtype="float32").parts
    single = [MobileO.load(tiny_model, adapter=folder, dtype="float32").parts for folder in others]
    for component in ("llm", "dit", "diffusion_connector"):
        tensors = [named_parameters(parts[component]) for parts in (base, *single)]
        for name, found in named_parameters(together[component]).items():
            plain, *adapted = (one[name] for one in tensors)
            expected = plain + sum(scale * (one - plain) for scale, one in zip(scales, adapted, strict=True))
            assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5), name


def test_several_beside_quantized_weights(tiny_model: Path, others: list[Path]) -> None:
    bits, scales = {"llm": 4, "dit": 8}, [0.5, 2.0, 1.0]
    base = MobileO.load(tiny_model, quantize=bits, dtype="float32").parts
    parts = MobileO.load(tiny_model, quantize=bits, adapter=others, adapter_scale=scales, dtype="float32").parts
    plain = MobileO.load(tiny_model, dtype="float32").parts
    merged = MobileO.load(tiny_model, adapter=others, adapter_scale=scales, dtype="float32").parts
    for component, path in (("llm", "layers.3.mlp.down_proj"), ("dit", "transformer_blocks.1.attn2.to_k")):
        layer, unadapted, before, after = (get_submodule(one[component], path) for one in (parts, base, plain, merged))
        assert isinstance(layer, AdaptedLinear)
        x = mx.random.normal((5, before.weight.shape[1]), key=mx.random.key(0))
        expected = unadapted(x) + x @ (after.weight - before.weight).T
        assert mx.allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_fused_several(tiny_model: Path, others: list[Path], tmp_path: Path) -> None:
    fuse(tiny_model, others, tmp_path / "fused", scale=[1, 0.5, 2])
    adapted = MobileO.load(tiny_model, adapter=others, adapter_scale=[1, 0.5, 2], dtype="float32").parts
    fused = MobileO.load(tmp_path / "fused", dtype="float32").parts
    assert all(same(adapted[name], fused[name]) for name in ("llm", "dit", "diffusion_connector"))


def test_how_strong_several_are(others: list[Path]) -> None:
    def scales(*arguments: Any) -> list[float]:
        return [adapter.scale for adapter in open_adapters(*arguments)]

    assert scales(others) == [1, 1, 1]
    assert scales(others, 0.5) == scales(others, [0.5]) == [0.5, 0.5, 0.5]
    assert scales(others, [1, 2, 3]) == [1, 2, 3]
    assert scales(str(others[0]), 2) == [2]
    assert open_adapters(None, 2) == open_adapters([], [1, 2]) == ()
    for wrong in ([1, 2], [1, 2, 3, 4], []):
        with pytest.raises(OptionError, match=f"there are {len(wrong)} scales for 3 adapters; give one for"):
            open_adapters(others, wrong)
    for odd in ("1", True, None, [1, "2", 3], float("nan"), 1e5, 10**400, [[1], 2, 3]):
        with pytest.raises(OptionError, match="scale"):
            open_adapters(others, odd)
    for odd in ([3], [""], "", [None]):
        with pytest.raises(OptionError, match="give the name of its folder"):
            open_adapters(odd)


def test_metadata_of_none_one_and_several(tiny_model: Path, others: list[Path]) -> None:
    def metadata(**loading: Any) -> dict[str, Any]:
        found = MobileO.load(tiny_model, dtype="float32", **loading).generate("a cat", steps=1).metadata()
        return {name: value for name, value in found.items() if name.startswith("adapter")}

    assert metadata() == metadata(adapter=[]) == {}
    one = {"adapter": str(others[1]), "adapter_scale": 1.0}
    assert metadata(adapter=others[1]) == metadata(adapter=[others[1]], adapter_scale=[1]) == one
    two = {"adapter": [str(others[0]), str(others[1])], "adapter_scale": [0.5, 0.5]}
    assert metadata(adapter=others[:2], adapter_scale=0.5) == metadata(**two) == two


# DoRA


@pytest.fixture
def dora(changed, tiny_model: Path) -> Path:
    """The adapter with magnitudes: those of the model's rows, some 10% off."""
    weights = named_parameters(MobileO.load(tiny_model, dtype="float32").parts.llm)

    def add(tensors: dict[str, Any]) -> None:
        generator = np.random.default_rng(0)
        for name in [name for name in tensors if ".lora_A." in name]:
            layer = name.removesuffix(".lora_A.weight")
            rows = np.array(weights[f"{layer.removeprefix('base_model.model.model.')}.weight"])
            factors = 1 + 0.1 * generator.standard_normal(len(rows))
            tensors[f"{layer}.lora_magnitude_vector"] = (np.linalg.norm(rows, axis=1) * factors).astype(np.float32)

    return changed("dora", tensors=add, use_dora=True)


def test_dora_goes_from_the_model_to_the_adapter(tiny_model: Path, dora: Path) -> None:
    base, half, whole = (
        named_parameters(MobileO.load(tiny_model, adapter=dora, adapter_scale=scale, dtype="float32").parts.llm)
        for scale in (0, 0.5, 1)
    )
    name = "layers.1.self_attn.q_proj"
    magnitudes = load_file(dora / WEIGHTS_FILE)[f"base_model.model.model.{name}.lora_magnitude_vector"]
    assert np.allclose(np.linalg.norm(np.array(whole[f"{name}.weight"]), axis=1), magnitudes, rtol=1e-5)
    for key, value in half.items():
        assert mx.allclose(value, (base[key] + whole[key]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_dora_of_quantized_rows_is_exact(tiny_model: Path, dora: Path, adapter: Path, bits: int) -> None:
    """Beside another update, and with a bias, which has no part in it."""
    loaded = [
        MobileO.load(tiny_model, quantize={"llm": bits}, dtype="float32", adapter=adapters, adapter_scale=scales)
        for adapters, scales in ((None, 1), ([adapter, dora], [0.3, 0.7]))
    ]
    tensors, path = load_file(dora / WEIGHTS_FILE), "layers.2.self_attn.k_proj"
    plain, layer = (get_submodule(model.parts.llm, path) for model in loaded)
    weight = mx.dequantize(plain.weight, plain.scales, plain.biases, group_size=plain.group_size, bits=bits)
    a, b, m = (
        mx.array(tensors[f"base_model.model.model.{path}.lora_{end}"])
        for end in ("A.weight", "B.weight", "magnitude_vector")
    )
    update = LLM.scale * b @ a
    gain = m / mx.linalg.norm(weight + update, axis=1)
    other = weight + 0.3 * update  # the random adapter has the same values
    expected = other + 0.7 * (gain[:, None] * (other + update) - other)
    assert mx.array_equal(layer.linear.weight, plain.weight)
    x = mx.random.normal((5, a.shape[1]), key=mx.random.key(0))
    assert mx.allclose(layer(x), x @ expected.T + plain.bias, rtol=1e-4, atol=1e-4)


def test_a_layer_without_its_magnitudes(changed, dora: Path) -> None:
    tensors = load_file(dora / WEIGHTS_FILE)
    name = "model.layers.0.mlp.up_proj"
    del tensors[f"base_model.model.{name}.lora_magnitude_vector"]
    save_file(tensors, dora / WEIGHTS_FILE)
    assert f"only a part of lora_A, lora_B and lora_magnitude_vector of {name}" in refused(dora)


def test_magnitudes_of_the_wrong_shape(dora: Path, tiny_model: Path) -> None:
    tensors = load_file(dora / WEIGHTS_FILE)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    save_file(tensors | {name: tensors[name][:5]}, dora / WEIGHTS_FILE)
    assert f"of the wrong shape are {name} (5,) instead of (128,)" in refused(dora, tiny_model)


# mlx-lm's files beside PEFT's


def test_a_file_of_the_other_library_is_missing(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"fine_tune_type": "full", "num_layers": 1}))
    shutil.copy(adapter / WEIGHTS_FILE, tmp_path)
    assert f"'{tmp_path / MLX_LM_FILE}' can't be read" in refused(tmp_path)


# Another model than the one that it was made for


def test_the_model_that_an_adapter_was_made_for(changed, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(base_model_name_or_path="someone/Mobile-O")
    assert MobileO.load(tiny_model, adapter=folder).notes == []
    model = MobileO.load(tiny_model, adapter=folder)
    monkeypatch.setattr(type(model.checkpoint), "name", "another/Mobile-O", raising=False)
    object.__setattr__(model.checkpoint, "name", "another/Mobile-O")
    assert model.notes == [f"the adapter '{folder}' was made for 'someone/Mobile-O', and this is 'another/Mobile-O'."]
    object.__setattr__(model.checkpoint, "name", "someone/Mobile-O")
    assert model.notes == []
