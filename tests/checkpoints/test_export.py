"""The language model for the app and for mlx-lm: what is written, and what other programs make of it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from huggingface_hub import ModelCard
from random_adapter import write_random_adapter

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints.adapters import Adapter
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, fuse
from mobileo_mlx.checkpoints.export import BITS, FORMATS, export
from mobileo_mlx.checkpoints.export_card import model_card
from mobileo_mlx.checkpoints.export_tokenizer import CHAT_TEMPLATE, FILES
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.checkpoints.quantize import QuantizeSpec
from mobileo_mlx.checkpoints.tensor_files import read_header, write_tensors
from mobileo_mlx.errors import CheckpointError, NotFiniteError, OptionError, OutputError
from mobileo_mlx.prompts import first_turn, next_turn
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.lora import LoRAConfig

QUESTIONS = ("what color is the star?", "how many objects are there?", "describe the image.")
APP = {
    "README.md",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    *FILES,
}


def read(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model.safetensors"))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def expected(model: str | Path, component: str, bits: int | None, dtype: mx.Dtype) -> dict[str, mx.array]:
    """What our own loading makes of the same weights."""
    spec = QuantizeSpec(bits) if bits else None
    return named_parameters(load_component(Checkpoint.open(model), component, dtype=dtype, quantize=spec))


def answers(model: MobileO, questions: Sequence[str]) -> list[list[int]]:
    return [[t.token for t in model.chat().stream(question, max_tokens=24)] for question in questions]


# The app


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", ["tiny", "random"])
def test_the_apps_half_holds_what_our_quantization_makes(bits, model, tiny_model, tmp_path):
    source = model if model == "tiny" else tiny_model
    made = export(tmp_path / "llm", "app", model=source, bits=bits)
    assert {path.name for path in made.path.iterdir()} == APP
    written = read(made.path)
    prefixes = {
        "llm": "language_model.model.",
        "lm_head": "language_model.lm_head.",
        "mm_projector": "multi_modal_projector.",
    }
    seen = set()
    for component, prefix in prefixes.items():
        ours = expected(source, component, bits if bits < 16 else None, mx.float16)
        if component == "mm_projector":
            ours = {name.replace("layers.", "linear_"): w for name, w in ours.items()}
        theirs = {prefix + name: w for name, w in ours.items()}
        assert all(mx.array_equal(written[name], w) and written[name].dtype == w.dtype for name, w in theirs.items())
        seen |= theirs.keys()
    assert written.keys() == seen
    assert {name for name in seen if name.startswith("multi_modal_projector.linear_") and name.endswith(".bias")} == {
        "multi_modal_projector.linear_0.bias",
        "multi_modal_projector.linear_2.bias",
    }
    # Every 2-D weight of at least 512 elements is quantized, embedding and head too; all else is float16.
    plain = [n for n, w in written.items() if w.ndim == 2 and n.endswith(".weight") and w.dtype != mx.uint32]
    assert plain == [] if bits < 16 else len(plain) > 20
    assert {w.dtype for w in written.values()} == ({mx.uint32, mx.float16} if bits < 16 else {mx.float16})
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(sorted(written), "model.safetensors")
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in written.values())
    assert (made.tensors, made.nbytes) == (len(written), (made.path / "model.safetensors").stat().st_size)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantized_it_is_near_the_original(bits, tmp_path):
    """By less than a step between the group's 2**bits levels, read with MLX alone."""
    written = read(export(tmp_path / "llm", "app", model="tiny", bits=bits).path)
    original = expected("tiny", "lm_head", None, mx.float16)["weight"].astype(mx.float32)
    name = "language_model.lm_head."
    parts = [written[name + leaf] for leaf in ("weight", "scales", "biases")]
    back = mx.dequantize(*parts, group_size=64, bits=bits).astype(mx.float32)
    step = mx.repeat(mx.abs(parts[1].astype(mx.float32)), 64, axis=1)
    assert bool((mx.abs(back - original) <= 1.01 * step).all())


def test_the_apps_configuration(tmp_path):
    config = config_of(export(tmp_path / "llm", "app", model="tiny").path)
    assert config["model_type"] == "llava_qwen2"
    assert config["quantization"] == {"group_size": 64, "bits": 4}  # the default, as in the original's export
    assert (config["mm_hidden_size"], config["mm_vision_tower"]) == (256, "mobileclip_l_64")
    assert config["hidden_size"] == 128
    assert config["image_token_index"] == 489  # no row: the tokenizer of tiny has no <image>
    assert "quantization" not in config_of(export(tmp_path / "half", "app", model="tiny", bits=16).path)


def test_the_apps_language_model_says_the_same(tmp_path):
    """As the app loads it, with MLX's own quantized layers: here by mlx-lm's Qwen2."""
    from mlx_lm.models.qwen2 import Model, ModelArgs

    folder = export(tmp_path / "llm", "app", model="tiny", bits=8).path
    config = config_of(folder)
    model = Model(ModelArgs.from_dict(config))
    weights = {n.removeprefix("language_model."): w for n, w in read(folder).items() if n.startswith("language_model.")}
    nn.quantize(model, **config["quantization"], class_predicate=lambda path, module: f"{path}.scales" in weights)
    model.load_weights(list(weights.items()))  # strictly
    tokenizer = Tokenizer.load(folder)
    ours = MobileO.load("tiny", dtype="float16", quantize={"llm": 8, "lm_head": 8})
    for question, answer in zip(QUESTIONS[:2], answers(ours, QUESTIONS[:2]), strict=True):
        ids = tokenizer.encode(first_turn(question))
        for token in answer:
            assert int(model(mx.array([ids]))[0, -1].argmax()) == token
            ids.append(token)


def test_a_tied_model_gets_a_head_in_the_app(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "tied"))
    (folder / "lm_head.safetensors").unlink()
    content = config_of(folder)
    content["components"].remove("lm_head")
    (folder / "config.json").write_text(json.dumps(content))
    app = export(tmp_path / "llm", "app", model=folder).path
    written = read(app)
    for leaf in ("weight", "scales", "biases"):
        head = written[f"language_model.lm_head.{leaf}"]
        assert mx.array_equal(head, written[f"language_model.model.embed_tokens.{leaf}"])
    assert config_of(app)["tie_word_embeddings"] is False
    lm = export(tmp_path / "lm", "mlx-lm", model=folder).path
    assert config_of(lm)["tie_word_embeddings"] is True
    assert not any(name.startswith("lm_head") for name in read(lm))


# mlx-lm


@pytest.mark.parametrize("bits", [None, *BITS])
def test_mlx_lm_says_the_same(bits, tmp_path):
    from mlx_lm import load, stream_generate

    folder = export(tmp_path / "lm", "mlx-lm", model="tiny", bits=bits).path
    model, tokenizer = load(str(folder))
    quantized = {"llm": bits, "lm_head": bits} if bits in (4, 8) else None
    ours = MobileO.load("tiny", dtype="float16", quantize=quantized)
    assert set(tokenizer.eos_token_ids) == set(ours.config.eos_token_ids)
    questions = QUESTIONS[2:] if quantized else QUESTIONS  # MLX's quantized product is slow on a CPU
    for question, answer in zip(questions, answers(ours, questions), strict=True):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == ours.tokenizer.encode(first_turn(question))
        assert [part.token for part in stream_generate(model, tokenizer, prompt, max_tokens=24)] == answer


def test_stored_values_and_bits_are_kept(tiny_model, tmp_path):
    plain = read(export(tmp_path / "plain", "mlx-lm", model=tiny_model).path)
    assert {w.dtype for w in plain.values()} == {mx.float32}
    assert {w.dtype for w in read(export(tmp_path / "half", "mlx-lm", model=tiny_model, bits=16).path).values()} == {
        mx.float16
    }
    convert(tiny_model, tmp_path / "mixed", quantize={"llm": 4, "lm_head": 8})
    made = export(tmp_path / "lm", "mlx-lm", model=tmp_path / "mixed")
    assert made.bits == 4
    assert config_of(made.path)["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "lm_head": {"group_size": 64, "bits": 8},
    }
    stored = mx.load(str(tmp_path / "mixed" / "llm.safetensors"))
    written = read(made.path)
    assert all(mx.array_equal(written[f"model.{name}"], w) for name, w in stored.items())

    from mlx_lm import load

    model, _ = load(str(made.path))
    assert (model.lm_head.bits, model.model.embed_tokens.bits) == (8, 4)


def test_what_is_quantized_is_dequantized_when_that_is_asked_for(tiny_model, tmp_path):
    small = tmp_path / "small"
    convert(tiny_model, small, quantize={"all": 8})
    with pytest.raises(OptionError, match=r"is quantized to 8 bits: export the original, .* --bits 16"):
        export(tmp_path / "lm", "mlx-lm", model=small, bits=4)
    with pytest.raises(OptionError, match=r"mm_projector of .* quantized to 8 bits"):
        export(tmp_path / "llm", "app", model=small)
    with pytest.raises(OptionError, match=r"vision_tower of .* holds it in full: export the original"):
        export(tmp_path / "up", "upstream", model=small)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    written = read(export(tmp_path / "lm", "mlx-lm", model=small, bits=16).path)
    stored = mx.load(str(small / "lm_head.safetensors"))
    back = mx.dequantize(*(stored[leaf] for leaf in ("weight", "scales", "biases")), group_size=64, bits=8)
    assert mx.array_equal(written["lm_head.weight"], back.astype(mx.float16))
    assert not any(name.endswith(("scales", "biases")) for name in written)
    # The same bits go as they are.
    app = read(export(tmp_path / "llm", "app", model=small, bits=8).path)
    assert mx.array_equal(app["language_model.lm_head.weight"], stored["weight"])


# What all formats share


def test_adapters_are_merged_as_fuse_merges_them(tiny_model, tmp_path):
    write_random_adapter(tmp_path / "adapter", tiny_model, LoRAConfig(rank=4, alpha=8, components=("llm", "dit")))
    notes: list[str] = []
    made = export(
        tmp_path / "lm",
        "mlx-lm",
        model=tiny_model,
        adapter=tmp_path / "adapter",
        adapter_scale=0.5,
        note=notes.append,
    )
    fuse(tiny_model, tmp_path / "adapter", tmp_path / "fused", scale=0.5)
    written = read(made.path)
    fused = mx.load(str(tmp_path / "fused" / "llm.safetensors"))
    plain = mx.load(str(tiny_model / "llm.safetensors"))
    assert all(mx.array_equal(written[f"model.{name}"], w) for name, w in fused.items())
    assert any(not mx.array_equal(written[f"model.{name}"], w) for name, w in plain.items())
    assert any("also changes dit, which mlx-lm does not hold" in sentence for sentence in notes)
    card = (made.path / "README.md").read_text()
    assert "`adapter` at scale 0.5" in card
    assert f"export lm --format mlx-lm --model {tiny_model.name} --adapter adapter --adapter-scale 0.5" in card
    convert(tiny_model, tmp_path / "small", quantize={"llm": 4})
    with pytest.raises(OptionError, match=r"'.*adapter' can't be merged into it: export the original"):
        export(tmp_path / "not", "mlx-lm", model=tmp_path / "small", adapter=tmp_path / "adapter")


def test_bad_requests_leave_nothing(tiny_model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(OptionError, match="the format 'gguf' is unknown; there are app, mlx-lm, mlx-vlm, upstream"):
        export(tmp_path / "new", "gguf", model="tiny")
    with pytest.raises(OptionError, match="bits = 3: they can be 4, 8 or 16"):
        export(tmp_path / "new", "app", model="tiny", bits=3)
    with pytest.raises(OptionError, match="upstream holds no quantized weights"):
        export(tmp_path / "new", "upstream", model=tiny_model, bits=4)
    with pytest.raises(OutputError, match="not empty"):
        export(tmp_path / "full", "app", model="tiny")
    with pytest.raises(CheckpointError, match="no folder"):
        export(tmp_path / "new", "app", model=str(tmp_path / "missing"))
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "precious"]


def test_weights_that_are_not_finite(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "odd"))
    tensors = mx.load(str(tiny_model / "llm.safetensors"))
    tensors["norm.weight"] = mx.full(tensors["norm.weight"].shape, 1e5)  # finite, and not in float16
    write_tensors(folder / "llm.safetensors", dict(tensors))
    with pytest.raises(NotFiniteError, match=r"llm.*leave the range of float16"):
        export(tmp_path / "llm", "app", model=folder)
    tensors["layers.0.mlp.up_proj.weight"][0, 0] = mx.nan
    write_tensors(folder / "llm.safetensors", dict(tensors))
    for bits in (None, 4):
        with pytest.raises(NotFiniteError, match=r"layers.0.mlp.up_proj.weight in .*llm.safetensors' holds NaN"):
            export(tmp_path / "lm", "mlx-lm", model=folder, bits=bits)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_a_width_that_the_apps_groups_do_not_divide(tiny_model, tmp_path):
    """mlx-lm's format can name groups of 32 for a layer."""
    source = Checkpoint.open(tiny_model)
    narrow = replace(source, config=replace(source.config, llm=replace(source.config.llm, intermediate_size=96)))
    with pytest.raises(OptionError, match="a layer has 96 inputs, and the app quantizes groups of 64; choose mlx-lm"):
        FORMATS["app"].check(narrow)


def test_a_model_without_tokenizer(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "mute"))
    (folder / "tokenizer.json").unlink()
    made = export(tmp_path / "lm", "mlx-lm", model=folder)
    assert not made.tokenizer
    assert not {path.name for path in made.path.iterdir()} & set(FILES)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "mlx-vlm"])
def test_cards(name, tiny_model, tmp_path):
    made = export(tmp_path / "made", name, model=tiny_model if name == "upstream" else "tiny")
    text = (made.path / "README.md").read_text()
    header = ModelCard(text).data  # of the hub's own library
    assert header.license == ("cc-by-nc-sa-4.0" if name == "upstream" else "mit")
    assert header.tags[-1] == "mobile-o"
    assert header.library_name in ("mlx", "transformers")
    assert header.base_model is None  # neither a bundled model nor a folder is one that the hub could name
    assert f"--format {name}" in text
    assert str(tmp_path) not in text
    assert str(tiny_model.parent) not in text


def test_the_card_of_a_model_from_the_hub(tiny_model):
    """With an adapter from there: both are what the result was made of."""
    source = replace(Checkpoint.open(tiny_model), name="Amshaker/Mobile-O-0.5B@v1")
    adapter = Adapter("someone/cats", tiny_model, "someone/cats", scale=0.5)
    text = model_card(
        source, "mlx-vlm", bits="bfloat16", folder="my model", adapters=[adapter], options=["--bits", "8"]
    )
    assert ModelCard(text).data.base_model == ["Amshaker/Mobile-O-0.5B", "someone/cats"]
    assert ModelCard(text).data.pipeline_tag == "image-text-to-text"
    command = "mobileo-mlx export 'my model' --format mlx-vlm --model Amshaker/Mobile-O-0.5B@v1 --adapter someone/cats"
    assert f"{command} --adapter-scale 0.5 --bits 8" in text


# The tokenizer


def test_the_chat_template_makes_our_prompts():
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(CHAT_TEMPLATE)
    user = {"role": "user", "content": "Hello"}
    told = [user, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "<image>\nWhat is it?"}]
    assert template.render(messages=[user], add_generation_prompt=True) == first_turn("Hello")
    whole = first_turn("Hello") + "Hi." + next_turn("What is it?", images=1)
    assert template.render(messages=told, add_generation_prompt=True) == whole
    system = {"role": "system", "content": "Be brief."}
    assert template.render(messages=[system, user], add_generation_prompt=True) == first_turn(
        "Hello", system_prompt="Be brief."
    )


def test_headers_say_mlx(tmp_path):
    from safetensors import safe_open

    folder = export(tmp_path / "lm", "mlx-lm", model="tiny").path
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}
    assert {info.dtype for info in read_header(folder / "model.safetensors").values()} == {"F16"}
