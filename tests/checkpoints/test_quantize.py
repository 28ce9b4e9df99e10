import gc
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from upstream import write_upstream

import mobileo_mlx.checkpoints.quantize as quantize_module
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, write_config
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.quantize import (
    BITS,
    PRECISIONS,
    QuantizedLinear,
    QuantizeSpec,
    parse_quantize,
    quantize,
    resolve_bits,
    resolve_quantize,
)
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.checkpoints.tensor_files import write_tensors
from mobileo_mlx.errors import CheckpointError, OptionError
from mobileo_mlx.models.mobileo import COMPONENTS, build
from mobileo_mlx.ops import backend
from mobileo_mlx.pipeline import MobileO


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "model"
    write_random_model(folder)
    return folder


# Options


def test_the_option_is_read():
    assert parse_quantize("llm=4,dit=8") == {"llm": 4, "dit": 8}
    assert parse_quantize(" llm = 4 , vae=6") == {"llm": 4, "vae_encoder": 6, "vae_decoder": 6}
    assert resolve_quantize(None) == {}


def test_the_closer_name_counts():
    everything = parse_quantize("dit=8,vae=6,all=4,vae_encoder=3")
    assert everything == {
        **dict.fromkeys(COMPONENTS, 4), "dit": 8, "vae_decoder": 6, "vae_encoder": 3
    }  # fmt: skip


def test_presets_are_bits_of_components():
    assert list(PRECISIONS) == ["small", "balanced", "full"]
    assert PRECISIONS["full"] == {}
    for bits in PRECISIONS.values():
        assert resolve_quantize(bits) == bits
    assert resolve_bits(None, "small") == PRECISIONS["small"]
    assert resolve_bits({"dit": 6, "vae_decoder": 8}, "small") == {**PRECISIONS["small"], "dit": 6, "vae_decoder": 8}
    assert resolve_bits({"dit": 6}) == {"dit": 6}
    assert resolve_bits(None) == {}
    with pytest.raises(OptionError, match=r"no precision 'tiny'; there are small, balanced, full\."):
        resolve_bits(None, "tiny")


def test_a_preset_loads_and_converts(ours, tmp_path):
    model = MobileO.load(ours, precision="small", quantize={"dit": 6})
    assert (model.parts.llm.layers[0].mlp.up_proj.bits, model.parts["lm_head"].bits) == (4, 4)
    assert model.generate("a cat", steps=1).quantize == {"llm": 4, "lm_head": 4, "dit": 6}
    convert(ours, tmp_path / "small", precision="small")
    assert {name: spec.bits for name, spec in Checkpoint.open(tmp_path / "small").quantization.items()} == {
        "llm": 4, "lm_head": 4, "dit": 8
    }  # fmt: skip
    with pytest.raises(OptionError, match="no precision 'tiny'"):
        MobileO.load("owner/not-downloaded", precision="tiny")
    with pytest.raises(OptionError, match="no precision ''"):
        MobileO.load(ours, precision="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not of the form"),
        ("llm", "not of the form"),
        ("llm=", "not of the form"),
        ("llm=4.0", "not of the form"),
        ("llm=-4", "not of the form"),
        ("llm=4;dit=8", "not of the form"),
        ("llm=4,", "not of the form"),
        ("llm=4,llm=8", "names 'llm' twice"),
        ("unet=4", "no component 'unet'"),
        ("llm=7", "2, 3, 4, 5, 6 or 8"),
        ("llm=16", "2, 3, 4, 5, 6 or 8"),
    ],
)
def test_nonsense_is_refused(text, expected):
    with pytest.raises(OptionError, match=expected):
        parse_quantize(text)


# Layers


def primitives(y: mx.array) -> set[str]:
    """The names of the operations that y is the result of."""
    text = io.StringIO()
    mx.export_to_dot(text, y)
    return set(re.findall(r'label ="(\w+)", shape=rectangle', text.getvalue()))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [True, False])
def test_both_paths_of_the_linear_layer_agree(bits, bias, monkeypatch):
    layer = QuantizedLinear.from_linear(nn.Linear(128, 48, bias=bias), 32, bits)
    mx.eval(layer.parameters())
    x = mx.random.normal((2, 5, 128), key=mx.random.key(0))

    def output(many: int) -> mx.array:
        monkeypatch.setattr(quantize_module, "MANY_ROWS_CPU", many)
        monkeypatch.setattr(quantize_module, "MANY_ROWS_GPU", many)
        return layer(x)

    few, many = output(11), output(10)
    assert "QuantizedMatmul" in primitives(few)
    assert "Matmul" in primitives(many)
    assert few.shape == many.shape == (2, 5, 48)
    assert mx.abs(few - many).max().item() < 1e-5 * mx.abs(few).max().item()


@pytest.mark.parametrize(("device", "name"), [("cpu", "MANY_ROWS_CPU"), ("metal", "MANY_ROWS_GPU")])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_number_of_rows_chooses_the_path(monkeypatch, device, name, batch):
    """Batch and positions count together; `test_many_rows_are_fast_on_a_cpu` says why it matters."""
    layer = QuantizedLinear.from_linear(nn.Linear(64, 8), 32, 4)
    mx.eval(layer.parameters())
    threshold = getattr(quantize_module, name)
    few, many = mx.zeros((batch, threshold // batch - 1, 64)), mx.zeros((batch, threshold // batch, 64))
    monkeypatch.setattr(backend, "backend", lambda: device)
    for rows, taken, other in ((few, "QuantizedMatmul", "Matmul"), (many, "Matmul", "QuantizedMatmul")):
        found = primitives(layer(rows))
        assert taken in found
        assert other not in found


def test_logits_do_not_depend_on_the_path(ours, monkeypatch):
    """Of a whole language model, prompt and head."""

    def logits(many: int) -> mx.array:
        monkeypatch.setattr(quantize_module, "MANY_ROWS_CPU", many)
        monkeypatch.setattr(quantize_module, "MANY_ROWS_GPU", many)
        return model.parts.lm_head(model.parts.llm(embeds))

    model = MobileO.load(ours, dtype="float32", quantize={"llm": 4, "lm_head": 4})
    embeds = model.parts.llm.embed_tokens(mx.arange(40)[None])
    few, many = logits(10**9), logits(1)
    assert mx.abs(few - many).max().item() < 1e-3


@pytest.mark.timing
def test_many_rows_are_fast_on_a_cpu():
    """The paths differ by a factor of 30 there; of 5 at least, lest other programs' load matters."""
    if not backend.on_cpu():
        pytest.skip("the factor is a CPU's")
    layer = QuantizedLinear.from_linear(nn.Linear(896, 2432), 64, 8)
    x = mx.random.normal((300, 896))
    mx.eval(x, layer.parameters())

    def seconds(call: Callable[[mx.array], mx.array]) -> float:
        begin = time.process_time()
        mx.eval(call(x))
        return time.process_time() - begin

    few = seconds(lambda x: nn.QuantizedLinear.__call__(layer, x))
    assert min(seconds(layer) for _ in range(3)) < few / 5


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_both_paths_have_the_same_dtype(dtype):
    layer = QuantizedLinear.from_linear(nn.Linear(64, 8), 32, 4)
    layer.set_dtype(dtype)
    for rows in (1, 300):
        assert layer(mx.zeros((rows, 64), dtype)).dtype == dtype


def test_what_can_be_quantized_is():
    class Doubled(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            return 2 * super().__call__(x)

    module = nn.Sequential(
        nn.Linear(128, 16), nn.Linear(96, 16), nn.Linear(40, 16), nn.Embedding(10, 64), nn.Conv2d(64, 64, 1),
        Doubled(64, 64),
    )  # fmt: skip
    assert quantize(module, QuantizeSpec(4)) is module
    by_64, by_32, odd, embedding, conv, doubled = module.layers
    assert (type(by_64), by_64.group_size, by_64.bits) == (QuantizedLinear, 64, 4)
    assert (type(by_32), by_32.group_size) == (QuantizedLinear, 32)
    assert type(odd) is nn.Linear
    assert (type(embedding), embedding.group_size) == (nn.QuantizedEmbedding, 64)
    assert type(conv) is nn.Conv2d
    assert type(doubled) is Doubled


def test_a_module_that_is_one_layer_is_replaced():
    assert isinstance(quantize(nn.Linear(64, 8), QuantizeSpec(8)), QuantizedLinear)


# Models


def outputs(checkpoint: Checkpoint, **options) -> list[mx.array]:
    """Something of every component."""
    config = checkpoint.config

    def load(component: str) -> nn.Module:
        return load_component(checkpoint, component, dtype=mx.float32, quantize=options.get(component))

    def noise(*shape: int) -> mx.array:
        return mx.random.normal(shape, key=mx.random.key(len(shape)))

    image = noise(1, config.image_size, config.image_size, 3)
    features = load("mm_projector")(load("vision_tower")(image))
    llm = load("llm")
    text = mx.concatenate([llm.embed_tokens(mx.array([[1, 2, 3]])), features], axis=1)
    states = llm.hidden_states(text, 4)
    condition = load("diffusion_connector")(states)
    dit, latents = load("dit"), noise(1, 4, 4, config.vae.latent_channels)
    velocity = dit(latents, mx.array([500.0]), dit.encode_text(condition))
    tail = [load("vae_decoder")(latents), load("vae_encoder")(image)]
    return [features, *states, load("lm_head")(states[-1]), condition, velocity, *tail]


def relative(a: mx.array, b: mx.array) -> float:
    return (mx.linalg.norm(a - b) / mx.linalg.norm(b)).item()


def test_fewer_bits_are_less_exact(ours):
    """8 bits are near the original in every output; each component feels its own bits."""
    checkpoint = Checkpoint.open(ours)
    exact = outputs(checkpoint)
    close = outputs(checkpoint, **dict.fromkeys(COMPONENTS, QuantizeSpec(8)))
    assert max(relative(a, b) for a, b in zip(close, exact, strict=True)) < 0.05
    rough = outputs(checkpoint, **dict.fromkeys(COMPONENTS, QuantizeSpec(3)))
    assert all(relative(a, b) > 2 * relative(c, b) > 0 for a, c, b in zip(rough, close, exact, strict=True))


def test_quantizing_while_loading_and_while_converting_agree(ours, tmp_path):
    def halve(tensors):
        tensors.update({k: v.astype(mx.bfloat16) for k, v in tensors.items() if v.dtype == mx.float32})

    theirs = write_upstream(tmp_path / "theirs", ours, change=halve)
    convert(theirs, tmp_path / "quantized", quantize={"all": 4, "dit": 8})
    specs = {name: QuantizeSpec(8 if name == "dit" else 4) for name in COMPONENTS}
    stored = Checkpoint.open(tmp_path / "quantized")
    assert stored.quantization == specs
    while_loading = outputs(Checkpoint.open(theirs), **specs)
    while_converting = outputs(stored)
    assert all(mx.array_equal(a, b) for a, b in zip(while_loading, while_converting, strict=True))
    with pytest.raises(OptionError, match="quantized to 4 bits already"):
        load_component(stored, "llm", quantize=QuantizeSpec(8))
    assert isinstance(load_component(stored, "lm_head", quantize=QuantizeSpec(4)), QuantizedLinear)


def test_a_stored_quantization_is_held_to_its_shapes(ours, tmp_path):
    folder = tmp_path / "quantized"
    convert(ours, folder, quantize={"llm": 4})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization": {"llm": {"bits": 8, "group_size": 64}}}))
    with pytest.raises(CheckpointError, match=r"llm\.embed_tokens\.weight \(406, 8\) instead of \(406, 16\)"):
        load_component(Checkpoint.open(folder), "llm")
    path.write_text(json.dumps({**config, "quantization": {"llm": {"bits": 4, "group_size": 32}}}))
    with pytest.raises(CheckpointError, match=r"llm\.embed_tokens\.scales \(406, 1\) instead of \(406, 2\)"):
        load_component(Checkpoint.open(folder), "llm")
    path.write_text(json.dumps({**config, "quantization": {}}))
    with pytest.raises(CheckpointError, match="how many bits 'llm'"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_quantizing_while_loading_needs_little_memory(ours, tmp_path, dtype):
    config = Checkpoint.open(ours).config
    width = 1024
    config = replace(
        config,
        llm=replace(config.llm, hidden_size=width, intermediate_size=4096, num_hidden_layers=3, vocab_size=8192),
        mm_projector=replace(config.mm_projector, output_dim=width),
        diffusion_connector=replace(config.diffusion_connector, hidden_size=width),
    )
    module = build("llm", config)
    module.set_dtype(dtype)
    tensors = dict(tree_flatten(module.parameters()))
    layer, whole = max(a.nbytes for a in tensors.values()), sum(a.nbytes for a in tensors.values())
    del module
    tmp_path.joinpath("model").mkdir()
    write_tensors(tmp_path / "model" / "llm.safetensors", tensors)
    write_config(tmp_path / "model", config, ["llm"])

    checkpoint = Checkpoint.open(tmp_path / "model")
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    quantized = load_component(checkpoint, "llm", dtype=dtype, quantize=QuantizeSpec(4))
    mx.eval(quantized.parameters())
    peak = mx.get_peak_memory() - before
    nbytes = sum(a.nbytes for _, a in tree_flatten(quantized.parameters()))
    limit = 1.35 * nbytes + layer  # and whether each element of a layer is finite
    assert limit < 0.8 * whole  # or the test would show nothing
    assert peak <= limit
    assert mx.get_active_memory() - before <= 1.05 * nbytes
