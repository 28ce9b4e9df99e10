import gc
import json
import os
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from safetensors.numpy import save_file
from upstream import write_upstream

import mobileo_mlx.checkpoints.checkpoint as checkpoint_module
import mobileo_mlx.checkpoints.tensor_files as tensor_files
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, describe
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.checkpoints.tensor_files import read_header, write_tensors
from mobileo_mlx.errors import CheckpointError, ConfigError
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.pipeline import MobileO

PICTURE = Image.new("RGB", (32, 32))


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "model"
    write_random_model(folder)
    return folder


@pytest.fixture
def copy(ours, tmp_path) -> Path:
    return Path(shutil.copytree(ours, tmp_path / "copy"))


def parameters(checkpoint: Checkpoint, component: str, **options) -> dict[str, mx.array]:
    return dict(tree_flatten(load_component(checkpoint, component, **options).parameters()))


def assert_same(a: Checkpoint, b: Checkpoint, **options) -> None:
    """The same components with the same weights, bit for bit."""
    for component in COMPONENTS:
        assert a.has(component) == b.has(component)
        if a.has(component):
            left, right = parameters(a, component, **options), parameters(b, component, **options)
            assert left.keys() == right.keys()
            assert all(left[name].dtype == right[name].dtype for name in left)
            assert all(mx.array_equal(left[name], right[name]) for name in left)


# Both layouts


def test_our_layout(ours):
    checkpoint = Checkpoint.open(ours)
    assert (checkpoint.layout, checkpoint.path, checkpoint.name) == ("mobileo-mlx", ours, str(ours))
    assert all(checkpoint.has(component) for component in COMPONENTS)
    assert checkpoint.config.default_size == (128, 128)
    assert checkpoint.load_tokenizer().token_id("<|im_end|>") in checkpoint.config.eos_token_ids
    stored = mx.load(str(ours / "dit.safetensors"))
    loaded = parameters(checkpoint, "dit", dtype=mx.float32)
    assert stored.keys() == loaded.keys()
    assert all(mx.array_equal(stored[name], loaded[name]) for name in stored)
    assert not load_component(checkpoint, "vision_tower").training


@pytest.mark.parametrize("files", [1, 3])
def test_upstreams_layout_holds_the_same_model(ours, tmp_path, files):
    theirs = Checkpoint.open(write_upstream(tmp_path / "theirs", ours, files=files))
    assert theirs.layout == "upstream"
    assert theirs.name == str(tmp_path / "theirs")
    assert theirs.config == Checkpoint.open(ours).config
    assert theirs.load_tokenizer().vocab_size == theirs.config.llm.vocab_size
    assert_same(theirs, Checkpoint.open(ours))


def test_the_model_in_the_one_subfolder_is_found(ours, tmp_path):
    folder = tmp_path / "repo" / "final_merged_model_123"
    write_upstream(folder, ours)
    shutil.move(folder / "diffusion", tmp_path / "repo" / "diffusion")  # beside it serves as well
    assert Checkpoint.open(tmp_path / "repo").path == folder
    shutil.copytree(folder, tmp_path / "repo" / "final_merged_model_456")
    with pytest.raises(CheckpointError, match="final_merged_model_123, final_merged_model_456"):
        Checkpoint.open(tmp_path / "repo")


def test_a_tied_lm_head_is_absent(ours, tmp_path):
    tied = Checkpoint.open(write_upstream(tmp_path / "t", ours, change=lambda t: t.pop("lm_head.weight")))
    assert not tied.has("lm_head")
    with pytest.raises(CheckpointError, match="lm_head"):
        load_component(tied, "lm_head")


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_read(ours, tmp_path, dtype):
    def halve(tensors):
        tensors.update({k: v.astype(dtype) for k, v in tensors.items() if v.dtype == mx.float32})

    half = Checkpoint.open(write_upstream(tmp_path / "half", ours, change=halve))
    assert half.stored_dtype("llm") == dtype
    exact = parameters(Checkpoint.open(ours), "llm", dtype=mx.float32)
    kept, computed = parameters(half, "llm", dtype=dtype), parameters(half, "llm", dtype=mx.float32)
    for name, array in exact.items():
        assert kept[name].dtype == dtype
        assert computed[name].dtype == mx.float32
        assert mx.array_equal(kept[name], array.astype(dtype))
        assert mx.array_equal(computed[name], array.astype(dtype).astype(mx.float32))


def test_the_leftovers_of_a_lora_merge(ours, tmp_path):
    """A prefixed tensor is ignored where the plain one exists, and takes its place where it doesn't."""

    def leave(tensors):
        tensors["base_model.model.model.dit.proj_out.weight"] = tensors["model.dit.proj_out.weight"] + 1
        tensors["base_model.model.model.norm.weight"] = tensors.pop("model.norm.weight")

    assert_same(Checkpoint.open(write_upstream(tmp_path / "t", ours, change=leave)), Checkpoint.open(ours))


def test_what_peft_leaves_of_a_wrapped_layer(ours, tmp_path):
    """Its tensors are one level down; they and the factors are ignored beside the merged tensor."""

    def leave(tensors):
        for kind in ("weight", "bias"):
            name = f"model.layers.0.self_attn.q_proj.{kind}"
            tensors[f"base_model.model.{name}".replace("proj.", "proj.base_layer.")] = tensors[name] + 1
        for factor in ("lora_A.default", "lora_B"):
            tensors[f"base_model.model.model.layers.0.self_attn.q_proj.{factor}.weight"] = mx.zeros((4, 64))
        moved = tensors.pop("model.layers.1.mlp.up_proj.weight")
        tensors["base_model.model.model.layers.1.mlp.up_proj.base_layer.weight"] = moved

    assert_same(Checkpoint.open(write_upstream(tmp_path / "t", ours, change=leave)), Checkpoint.open(ours))


def test_an_update_that_was_not_merged_is_refused(ours, tmp_path):
    def leave(tensors):
        layer = "model.layers.1.mlp.up_proj"
        tensors[f"base_model.model.{layer}.base_layer.weight"] = tensors.pop(f"{layer}.weight")
        tensors[f"base_model.model.{layer}.lora_A.weight"] = mx.zeros((4, 64))

    with pytest.raises(CheckpointError, match=r"unexpected are llm\.layers\.1\.mlp\.up_proj\.lora_A\.weight;"):
        load_component(Checkpoint.open(write_upstream(tmp_path / "t", ours, change=leave)), "llm")


# Laziness


def test_a_component_that_was_taken_away_matters_only_when_it_is_needed(copy):
    (copy / "dit.safetensors").unlink()
    checkpoint = Checkpoint.open(copy)
    assert not checkpoint.has("dit")
    load_component(checkpoint, "llm")
    with pytest.raises(CheckpointError, match=r"dit\.safetensors"):
        load_component(checkpoint, "dit")


def test_a_lost_lm_head_is_no_tied_one(copy):
    (copy / "lm_head.safetensors").unlink()
    assert not Checkpoint.open(copy).tied
    model = MobileO.load(copy)
    assert model.generate("a cat", steps=1).images
    tasks = (lambda: model.ask(PICTURE, "what?"), lambda: model.chat().send("hello"))
    for answer in (lambda: model.parts.lm_head, *tasks):
        with pytest.raises(CheckpointError, match=r"lm_head\.safetensors"):
            answer()
    with pytest.raises(CheckpointError, match=r"lm_head\.safetensors"):
        convert(copy, copy.parent / "converted")


def test_a_tied_model_answers_in_both_layouts(ours, tmp_path):
    theirs = write_upstream(tmp_path / "theirs", ours, change=lambda t: t.pop("lm_head.weight"))
    convert(theirs, tmp_path / "ours")
    answers = set()
    for folder in (theirs, tmp_path / "ours"):
        assert Checkpoint.open(folder).tied
        answers.add(tuple(MobileO.load(folder).chat().send("hello", max_tokens=5).tokens))
    assert len(answers) == 1


def test_loading_reads_nothing_but_what_is_used(ours, tmp_path):
    theirs = Checkpoint.open(write_upstream(tmp_path / "theirs", ours))
    gc.collect()
    before = mx.get_active_memory()
    module = load_component(theirs, "llm")
    assert mx.get_active_memory() - before < 1000
    nbytes = sum(array.nbytes for _, array in tree_flatten(module.parameters()))
    mx.eval(module.parameters())
    assert nbytes <= mx.get_active_memory() - before < 1.2 * nbytes


def test_checking_reads_no_weights(ours, tmp_path):
    for folder in (ours, write_upstream(tmp_path / "theirs", ours)):
        checkpoint = Checkpoint.open(folder)
        gc.collect()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        checkpoint.check(*COMPONENTS)
        assert mx.get_peak_memory() - before < 10_000  # constants of the networks


@pytest.mark.parametrize("quantize", [None, {"all": 4}])
def test_a_users_random_numbers_are_not_disturbed(ours, quantize):
    def draw_and_ask() -> None:
        model = MobileO.load(ours, quantize=quantize)
        model.generate("a cat", steps=1)
        model.ask(PICTURE, "what?", max_tokens=3, temperature=1, top_p=0.9, repetition_penalty=1.1)

    def numbers(between) -> list[float]:
        mx.random.seed(2**40 + 3)
        mx.random.normal((1,))
        between()
        return mx.random.normal((3,)).tolist()

    assert numbers(draw_and_ask) == numbers(lambda: None)


# Strictness


def rewrite(path: Path, change) -> None:
    tensors = dict(mx.load(str(path)))
    mx.eval(tensors)
    change(tensors)
    write_tensors(path, tensors)


def test_all_that_does_not_fit_is_listed(copy):
    def spoil(tensors):
        del tensors["proj_out.weight"], tensors["caption_norm.weight"]
        tensors["proj_out.extra"] = tensors["other"] = mx.zeros((1,))
        tensors["proj_out.bias"] = mx.zeros((3,))

    rewrite(copy / "dit.safetensors", spoil)
    with pytest.raises(CheckpointError) as error:
        load_component(Checkpoint.open(copy), "dit")
    message = str(error.value)
    assert str(copy) in message
    assert "missing are dit.caption_norm.weight, dit.proj_out.weight;" in message
    assert "unexpected are dit.other, dit.proj_out.extra;" in message
    assert "of the wrong shape are dit.proj_out.bias (3,) instead of (8,);" in message


def test_what_nothing_asks_for_is_described(ours, copy):
    rewrite(copy / "dit.safetensors", lambda tensors: tensors.update(other=mx.zeros((1,))))
    assert describe(copy).extra == ("dit.other",)
    assert describe(ours).extra == ()
    rewrite(copy / "dit.safetensors", lambda tensors: tensors.pop("proj_out.weight"))
    with pytest.raises(CheckpointError, match=r"missing are dit\.proj_out\.weight; get"):
        describe(copy)


def spoil_vision(tensors):
    del tensors["layers.0.bias"]


@pytest.mark.parametrize(
    ("task", "others"),
    [
        (lambda model: model.stream_generate("a cat"), []),
        (lambda model: model.stream_edit(PICTURE, "redder"), ["mm_projector.layers.0.bias"]),
        (
            lambda model: model.stream_edit(PICTURE, "redder", strength=0.5),
            ["mm_projector.layers.0.bias", "vae_encoder.safetensors"],
        ),
    ],
)
def test_a_task_lists_the_problems_of_all_its_components_at_once(copy, monkeypatch, task, others):
    (copy / "vae_encoder.safetensors").unlink()
    (copy / "vae_decoder.safetensors").unlink()
    rewrite(copy / "dit.safetensors", lambda t: t.update({"proj_out.bias": mx.zeros((3,))}))
    rewrite(copy / "diffusion_connector.safetensors", lambda t: t.update(other=mx.zeros((3,))))
    rewrite(copy / "mm_projector.safetensors", spoil_vision)
    monkeypatch.setattr(Checkpoint, "network", lambda *_: pytest.fail("a component was loaded"))
    with pytest.raises(CheckpointError) as error:
        task(MobileO.load(copy))  # before anything is taken from the iterator
    message = str(error.value)
    always = ["vae_decoder.safetensors", "dit.proj_out.bias (3,) instead of (8,)", "diffusion_connector.other"]
    for name in (*always, *others):
        assert name in message
    for name in {"mm_projector.layers.0.bias", "vae_encoder.safetensors"} - set(others):
        assert name not in message


def test_a_question_lists_the_problems_of_all_its_components_at_once(copy, monkeypatch):
    for name in ("dit", "vae_decoder", "vision_tower"):
        (copy / f"{name}.safetensors").unlink()
    rewrite(copy / "mm_projector.safetensors", spoil_vision)
    rewrite(copy / "lm_head.safetensors", lambda t: t.update(bias=mx.zeros((3,))))
    rewrite(copy / "llm.safetensors", lambda t: t.pop("norm.weight"))
    monkeypatch.setattr(Checkpoint, "network", lambda *_: pytest.fail("a component was loaded"))
    model = MobileO.load(copy)
    with pytest.raises(CheckpointError) as error:
        model.stream_ask(PICTURE, "what?")
    message = str(error.value)
    assert "absent are vision_tower.safetensors; missing are llm.norm.weight, mm_projector.layers.0.bias;" in message
    assert "unexpected are lm_head.bias;" in message
    assert "dit" not in message
    with pytest.raises(CheckpointError, match=r"missing are llm\.norm\.weight; unexpected are lm_head\.bias;"):
        model.chat().stream("what?")


def test_a_drawing_needs_none_but_its_components(copy):
    for name in ("vision_tower", "mm_projector", "lm_head", "vae_encoder"):
        (copy / f"{name}.safetensors").unlink()
    assert MobileO.load(copy).generate("a cat", steps=1).images


def test_a_component_is_looked_at_once(ours, monkeypatch):
    checkpoint = Checkpoint.open(ours)
    checkpoint.check("dit", "llm")
    monkeypatch.setattr(checkpoint_module, "build", lambda *_: pytest.fail("built again"))
    checkpoint.check("llm", "dit")


def test_a_long_list_is_cut(copy):
    rewrite(copy / "dit.safetensors", lambda t: t.update({f"x{i:02d}": mx.zeros((1,)) for i in range(25)}))
    with pytest.raises(CheckpointError, match=r"dit\.x18, dit\.x19 and 5 more; get the model again\.$"):
        load_component(Checkpoint.open(copy), "dit")


def test_upstreams_tensors_are_checked_too(ours, tmp_path):
    def spoil(tensors):
        del tensors["model.dit.proj_out.weight"]
        tensors["model.dit.other"] = mx.zeros((1,))
        tensors["model.vae.decoder.conv_in.weight"] = mx.zeros((64, 8, 3))
        tensors["model.vae.decoder.conv_out.weight"] = mx.zeros((3, 17, 3, 3))

    theirs = Checkpoint.open(write_upstream(tmp_path / "t", ours, change=spoil))
    with pytest.raises(CheckpointError, match=r"missing are dit\.proj_out\.weight; unexpected are dit\.other;"):
        load_component(theirs, "dit")
    with pytest.raises(CheckpointError, match=r"vae_decoder\.conv_out\.weight \(3, 3, 3, 17\) instead of"):
        load_component(theirs, "vae_decoder")


@pytest.mark.parametrize(
    ("name", "shape", "component"),
    [
        ("model.dit.transformer_blocks.0.ff.conv_depth.weight", (), "dit"),
        ("model.vae.decoder.up_blocks.3.1.attn.to_qkv_multiscale.0.proj_out.weight", (7, 16, 1, 1), "vae_decoder"),
    ],
)
def test_a_tensor_that_can_not_be_laid_out_anew_is_named(ours, tmp_path, name, shape, component):
    def spoil(tensors):
        assert name in tensors
        tensors[name] = mx.zeros(shape)

    theirs = Checkpoint.open(write_upstream(tmp_path / "t", ours, change=spoil))
    with pytest.raises(CheckpointError, match="wrong shape") as error:
        load_component(theirs, component)
    assert f"{component}.{name.split('.', 2)[2].removeprefix('decoder.')} {shape}" in str(error.value)


def test_tensors_of_no_component_are_found_on_opening(ours, tmp_path):
    def spoil(tensors):
        tensors["model.audio_tower.weight"] = tensors["optimizer.state"] = mx.zeros((1,))

    with pytest.raises(CheckpointError, match=r"are not Mobile-O's: model\.audio_tower\.weight, optimizer\.state"):
        Checkpoint.open(write_upstream(tmp_path / "t", ours, change=spoil))


def test_a_tensor_that_tells_a_dimension_is_missing(ours, tmp_path):
    def spoil(tensors):
        del tensors["model.diffusion_connector.fusion.input_compress.0.weight"]

    with pytest.raises(CheckpointError, match=r"input_compress\.0\.weight"):
        Checkpoint.open(write_upstream(tmp_path / "t", ours, change=spoil))


def test_another_model_is_recognised(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tensors = {"model.embed_tokens.weight": mx.zeros((4, 4)), "model.norm.weight": mx.zeros((4,))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    with pytest.raises(CheckpointError, match="is no Mobile-O model: it has no tensors of vision_tower"):
        Checkpoint.open(tmp_path)


def test_an_unusual_dtype_is_refused(copy):
    path = copy / "lm_head.safetensors"
    header = b'{"weight":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \(I8\)"):
        Checkpoint.open(copy)


def test_a_pipe_in_the_place_of_a_file_is_named(ours, tmp_path, copy):
    theirs = write_upstream(tmp_path / "theirs" / "model", ours)
    for folder, name in ((copy, "dit.safetensors"), (theirs, "generation_config.json")):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match=f"{name}' is not a regular file"):
            Checkpoint.open(folder)


def test_a_model_in_float64_is_the_same_in_float32(ours, copy, monkeypatch):
    for path in copy.glob("*.safetensors"):
        wide = {name: np.array(array).astype(np.float64) for name, array in mx.load(str(path)).items()}
        save_file(wide, path)
    info = describe(copy)
    assert {part.dtype for part in info.components} == {"float32"}
    assert info.nbytes == 2 * describe(ours).nbytes
    assert_same(Checkpoint.open(copy), Checkpoint.open(ours))
    # Comparing names and shapes reads none of it.
    monkeypatch.setattr(tensor_files, "_read_at_once", None)
    Checkpoint.open(copy).check(*COMPONENTS)


def test_a_network_in_float8_computes(copy):
    header, path = {}, copy / "lm_head.safetensors"
    shape = read_header(path)["weight"].shape
    codes = np.arange(shape[0] * shape[1], dtype=np.uint32).astype(np.uint8) % 127  # none is NaN
    header["weight"] = {"dtype": "F8_E4M3", "shape": list(shape), "data_offsets": [0, codes.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + codes.tobytes())
    checkpoint = Checkpoint.open(copy)
    assert checkpoint.stored_dtype("lm_head") == mx.bfloat16
    weight = load_component(checkpoint, "lm_head", dtype=mx.float32).weight
    assert mx.array_equal(weight, mx.from_fp8(mx.array(codes), mx.float32).reshape(shape))


def test_a_truncated_file_is_found_on_opening(copy):
    path = copy / "llm.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"llm\.safetensors' is cut short"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"format_version": 2}, CheckpointError, "update mobileo-mlx"),
        ({"llm": {}}, ConfigError, "'llm' in .*config.json lacks 'hidden_size'"),
        ({"format_version": "9" * 10_000}, CheckpointError, "version '99999"),
        ({"components": "llm"}, ConfigError, "has components = 'llm', which is not a list"),
        ({"quantization": [4]}, ConfigError, r"has quantization = \[4\], which is not an object for each component"),
        ({"quantization": {"other": {}}}, ConfigError, "not an object for each component"),
        ({"quantization": {"llm": 4}}, ConfigError, "not an object for each component"),
        ({"quantization": {"llm": {"bits": 4}}}, ConfigError, "of 'llm' in .*config.json lacks 'group_size'"),
        ({"quantization": {"llm": {"bits": 7, "group_size": 64}}}, ConfigError, "has bits = 7, which is not 2 or 3"),
        ({"quantization": {"llm": {"bits": "4", "group_size": 64}}}, ConfigError, "has bits = '4', which is not"),
        ({"quantization": {"llm": {"bits": 4, "group_size": 64.0}}}, ConfigError, "has group_size = 64.0, which is"),
    ],
)
def test_a_config_that_makes_no_sense(copy, change, error, expected):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=expected):
        Checkpoint.open(copy)


# The original's own checkpoint


def test_the_reference_checkpoint_opens(reference):
    checkpoint = Checkpoint.open(reference / "tiny" / "checkpoint")
    overrides = json.loads((reference / "tiny" / "overrides.json").read_text())
    config = checkpoint.config
    assert list(config.vision_tower.layers) == overrides["vision_tower"]["layers"]
    assert list(config.vision_tower.embed_dims) == overrides["vision_tower"]["embed_dims"]
    assert config.diffusion_connector.hidden_dim == overrides["diffusion_connector"]["hidden_dim"]
    assert config.diffusion_connector.output_dim == overrides["diffusion_connector"]["output_dim"]
    assert config.image_size == overrides["vision_tower"]["image_size"]
    assert config.dit.num_cross_attention_heads == 4  # from the folder beside it
    total = 0
    for component in COMPONENTS:
        total += len(checkpoint.tensors(component))
        load_component(checkpoint, component)
    assert total == 488
    with pytest.raises(CheckpointError, match="tokenizer"):
        checkpoint.load_tokenizer()
