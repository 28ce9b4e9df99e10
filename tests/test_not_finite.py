"""NaN and infinity, in every component and task: one sentence that names the first component, and a usable model."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from random_adapter import write_random_adapter
from safetensors.numpy import load_file, save_file

from mobileo_mlx import diffusion
from mobileo_mlx.checkpoints.adapters import WEIGHTS_FILE
from mobileo_mlx.checkpoints.convert import convert, fuse
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.diffusion import denoise
from mobileo_mlx.errors import CheckpointError, NotFiniteError, OptionError
from mobileo_mlx.generation_options import AnswerOptions, GenerationOptions
from mobileo_mlx.latents import noise
from mobileo_mlx.models.sana_cross_attention import TextInput
from mobileo_mlx.options import resolve_options
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.schedulers import make_scheduler
from mobileo_mlx.training.lora import LoRAConfig

# A matrix of each component that every input passes through.
MATRICES = {
    "vision_tower": "network.7.0.convffn.fc1.weight",
    "mm_projector": "layers.2.weight",
    "llm": "layers.1.mlp.up_proj.weight",
    "lm_head": "weight",
    "diffusion_connector": "sequence_refiners.0.conv.pointwise.weight",
    "dit": "transformer_blocks.1.attn1.to_q.weight",
    "vae_encoder": "down_blocks.3.0.conv_out.conv_point.weight",
    "vae_decoder": "up_blocks.4.1.conv_out.conv_point.weight",
}
PICTURE = Image.new("RGB", (64, 64), (200, 60, 40))

TASKS: dict[str, Callable[[MobileO], object]] = {
    "generate": lambda model: model.generate("a red star", steps=2, width=64, height=64),
    "edit": lambda model: model.edit(PICTURE, "make it blue", steps=2, width=64, height=64, strength=0.9),
    "ask": lambda model: model.ask(PICTURE, "what is it?", max_tokens=3),
    "chat": lambda model: model.chat().send("what is it?", images=[PICTURE], max_tokens=3),
}
USED = {
    "generate": ("llm", "diffusion_connector", "dit", "vae_decoder"),
    "edit": ("vision_tower", "mm_projector", "llm", "diffusion_connector", "dit", "vae_encoder", "vae_decoder"),
    "ask": ("vision_tower", "mm_projector", "llm", "lm_head"),
    "chat": ("vision_tower", "mm_projector", "llm", "lm_head"),
}


def spoil(model: Path, folder: Path, component: str, value: float = float("nan"), name: str = "") -> Path:
    """A copy of a model in which one tensor of a component is multiplied by a value."""
    shutil.copytree(model, folder)
    file = folder / f"{component}.safetensors"
    weights: Any = dict(mx.load(str(file)))
    key = name or MATRICES[component]
    weights[key] = (weights[key].astype(mx.float32) * value).astype(mx.float32)
    mx.eval(weights)
    mx.save_safetensors(str(file), weights)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, in float32 so that a spoilt copy differs in one tensor alone."""
    original, folder = tmp_path_factory.mktemp("models") / "random", tmp_path_factory.mktemp("models") / "float32"
    write_random_model(original)
    convert(original, folder, dtype="float32")
    return folder


@pytest.fixture(scope="module", params=[float("nan"), float("inf")], ids=["nan", "inf"])
def spoilt(request: pytest.FixtureRequest, small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("spoilt")
    return {component: spoil(small, folder / component, component, request.param) for component in MATRICES}


@pytest.mark.parametrize(("task", "component"), [(task, name) for task, used in USED.items() for name in used])
def test_the_component_and_its_tensor_are_named(spoilt: dict[str, Path], task: str, component: str) -> None:
    model = MobileO.load(spoilt[component], keep_loaded=task in ("chat", "edit"), dtype="float32")
    for _ in range(2):  # what was kept of the first time is no better
        with pytest.raises(NotFiniteError) as failed:
            TASKS[task](model)
        assert failed.value.component == component
        assert re.fullmatch(
            rf"{component} in float32 has values that are not finite: {re.escape(MATRICES[component])} in "
            rf"'.*{component}.safetensors' holds NaN or infinity; get the model again\.",
            str(failed.value),
        )


@pytest.mark.parametrize("component", ["llm", "vision_tower", "dit"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_hides_nothing(small: Path, tmp_path: Path, component: str, bits: int) -> None:
    names = {"llm": "embed_tokens.weight", "dit": "proj_out.weight"}
    folder = spoil(small, tmp_path / "spoilt", component, name=names.get(component, ""))
    task = "generate" if component == "dit" else "ask"
    with pytest.raises(NotFiniteError, match=f"^{component} .*{names.get(component, MATRICES[component])} in"):
        TASKS[task](MobileO.load(folder, quantize={component: bits}))
    with pytest.raises(NotFiniteError, match=f"^{component} .* holds NaN or infinity; get the model again"):
        convert(folder, tmp_path / "made", quantize={component: bits})
    assert not (tmp_path / "made").exists()


def test_tied_weights_are_the_language_models(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(small, folder)
    (folder / "lm_head.safetensors").unlink()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"lm_head",', ""))
    model = MobileO.load(spoil(folder, tmp_path / "spoilt", "llm"))
    assert model.checkpoint.tied
    # A head that is not finite, and hidden states that are.
    model.parts.llm.layers[1].mlp.up_proj.weight = mx.zeros_like(model.parts.llm.layers[1].mlp.up_proj.weight)
    model.parts.llm.embed_tokens.weight = model.parts.llm.embed_tokens.weight.at[0].add(float("nan"))
    with pytest.raises(NotFiniteError, match=r"^llm "):
        model.ask(PICTURE, "what is it?")


# Causes that are not in the weights


@pytest.mark.parametrize(
    ("component", "task"), [("llm", "ask"), ("llm", "generate"), ("dit", "generate"), ("vae_decoder", "generate")]
)
def test_what_leaves_float16_says_which_dtype_does_not(small: Path, tmp_path: Path, component: str, task: str) -> None:
    names = {"llm": "layers.0.mlp.down_proj.weight", "dit": "proj_out.weight"}
    folder = spoil(small, tmp_path / "large", component, 2e5, names.get(component, "conv_in.weight"))
    with pytest.raises(NotFiniteError, match=rf"^{component} in float16 .* choose --dtype {component}=bfloat16\.$"):
        TASKS[task](MobileO.load(folder, dtype="float16"))
    TASKS[task](MobileO.load(folder, dtype="bfloat16"))


@pytest.mark.parametrize("keep_loaded", [False, True])
@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1e37), ("float16", 1e10), ("float32", 1e37)])
def test_guidance_that_is_too_strong_is_named(small: Path, dtype: str, scale: float, keep_loaded: bool) -> None:
    model = MobileO.load(small, dtype=dtype, keep_loaded=keep_loaded)
    with pytest.raises(NotFiniteError, match=r"guidance scale") as failed:
        model.generate("a red star", steps=8, guidance_scale=scale)
    assert "get the model again" not in str(failed.value)
    # The model is usable.
    assert model.generate("a red star", steps=1, guidance_scale=1.5).images


def test_latents_that_no_image_has(small: Path) -> None:
    model = MobileO.load(small, dtype="float16")
    latents = noise(model.config, 0, 64, 64)
    with pytest.raises(NotFiniteError, match=r"^dit .* starts from latents as large as 4e\+30; give noise"):
        model.generate("a star", steps=2, initial_latents=mx.full(latents.shape, 4e30))
    with pytest.raises(NotFiniteError, match=r"^vae_decoder .* latents are as large as 4e\+30"):
        model.decode_latents(mx.full(latents.shape, 4e30))
    for value in (float("nan"), float("inf")):
        with pytest.raises(OptionError, match="initial latents have values that are not finite"):
            model.stream_generate("a star", initial_latents=latents * value)
        with pytest.raises(OptionError, match="the latents have values that are not finite"):
            model.decode_latents(latents * value)


def test_weights_that_were_changed_in_memory(small: Path) -> None:
    model = MobileO.load(small)
    layer = model.parts.dit.proj_out
    layer.weight = layer.weight * float("nan")
    with pytest.raises(NotFiniteError, match=r"^dit .* training makes weights as large as inf, .* the learning rate"):
        TASKS["generate"](model)


# Drawing stops at once, and without waiting more often


def test_a_drawing_stops_at_the_step_that_fails(small: Path) -> None:
    model = MobileO.load(small)
    steps = model.stream_generate("a red star", steps=6)
    next(steps)
    next(steps)
    model.parts.dit.proj_out.weight = model.parts.dit.proj_out.weight * float("nan")
    with pytest.raises(NotFiniteError):
        next(steps)
    with pytest.raises(StopIteration):
        next(steps)


def test_a_step_is_waited_for_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is evaluated with the latents: nothing is left to evaluate when it is read."""
    model = MobileO.load(small)
    text = TextInput(mx.random.normal((1, 5, model.config.diffusion_connector.output_dim)))
    evaluated: list[tuple[Any, ...]] = []
    flags: list[mx.array] = []
    real, real_eval = diffusion.all_finite, mx.eval
    monkeypatch.setattr(diffusion, "all_finite", lambda *arrays: flags.append(real(*arrays)) or flags[-1])
    steps = denoise(model.parts.dit, make_scheduler("euler", 3), noise(model.config, 0, 64, 64), text)
    next(steps)
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.append(arrays) or real_eval(*arrays))
    next(steps)
    assert [any(array is flags[-1] for array in arrays) for arrays in evaluated] == [True]


# Conversations


class Failing:
    """A head whose logits are NaN from a call on, counted from 0."""

    def __init__(self, model: MobileO, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.calls, self.fails_from = model.parts.lm_head, 0, -1
        monkeypatch.setattr(type(model.parts), "lm_head", property(lambda parts: self))

    def __call__(self, hidden: mx.array) -> mx.array:
        self.calls += 1
        logits = self.real(hidden)
        return logits * float("nan") if 0 <= self.fails_from < self.calls else logits


@pytest.mark.parametrize("fails_from", [0, 1, 3])
def test_a_turn_that_fails_has_not_been(small: Path, monkeypatch: pytest.MonkeyPatch, fails_from: int) -> None:
    model = MobileO.load(small)
    head = Failing(model, monkeypatch)
    expected = model.chat()
    for text in ("what is it?", "and now?"):
        expected.send(text, images=[PICTURE], max_tokens=4)
    chat = model.chat()
    chat.send("what is it?", images=[PICTURE], max_tokens=4)
    before = list(chat.messages)
    head.calls, head.fails_from = 0, fails_from
    tokens = []
    with pytest.raises(NotFiniteError) as failed:
        tokens += chat.stream("why is it so?", max_tokens=8)
    assert failed.value.component == "lm_head"
    head.fails_from = -1
    assert chat.messages == before
    chat.send("and now?", images=[PICTURE], max_tokens=4)
    assert chat.messages == expected.messages


def test_keys_and_values_of_a_failed_turn_are_gone(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN in the language model itself reaches the cache before the logits."""
    model = MobileO.load(small)
    chat = model.chat()
    chat.send("what is it?", max_tokens=2)
    layer = model.parts.llm.layers[0].self_attn.k_proj
    weight = layer.weight
    stream = chat.stream("why is it so?", max_tokens=8)
    next(stream)
    layer.weight = weight * float("nan")
    with pytest.raises(NotFiniteError, match=r"^llm "):
        list(stream)
    layer.weight = weight
    assert all(mx.isfinite(array).all() for layer in chat._cache for array in layer.state)
    chat.send("and now?", max_tokens=2)
    assert len(chat.messages) == 4


# Options of answering


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1e-44}, "by temperature 9.8*e-45|by temperature 1e-44"),
        ({"temperature": 1.0, "repetition_penalty": 1e-40}, "by temperature 1 and repetition penalty 1e-40"),
    ],
)
def test_options_that_leave_the_range_are_named(small: Path, options: dict[str, float], expected: str) -> None:
    with pytest.raises(NotFiniteError, match=expected):
        MobileO.load(small).ask(PICTURE, "what is it?", max_tokens=8, **options)


@pytest.mark.parametrize("name", ["guidance_scale", "steps", "flow_shift", "max_tokens", "temperature"])
@pytest.mark.parametrize("digits", [20, 400, 5000])
def test_whole_numbers_of_any_size(name: str, digits: int) -> None:
    """Python and JSON have them; in more than 4300 digits Python does not even print them."""
    kind = AnswerOptions if name in ("max_tokens", "temperature") else GenerationOptions
    if digits == 20 and name not in ("steps", "max_tokens"):
        assert resolve_options(kind, {name: 10**digits})[name] == 1e20
        return
    with pytest.raises(OptionError, match=rf"{name.replace('_', ' ')} is too large; choose"):
        resolve_options(kind, {name: 10**digits})


def test_a_guidance_scale_that_int64_does_not_hold(small: Path) -> None:
    model = MobileO.load(small)
    with pytest.raises(NotFiniteError, match="guidance scale"):
        model.generate("a red star", steps=8, guidance_scale=10**37)


def test_a_guidance_interval_beyond_all_numbers() -> None:
    with pytest.raises(OptionError, match="guidance interval"):
        resolve_options(GenerationOptions, {"guidance_interval": (0, 10**400)})


# Adapters


@pytest.fixture
def adapter(small: Path, tmp_path: Path) -> Path:
    write_random_adapter(tmp_path / "adapter", small, LoRAConfig(rank=4, alpha=8, components=("llm", "dit")))
    return tmp_path / "adapter"


def change(adapter: Path, component: str, letter: str, value: float) -> str:
    """Multiplies one factor of an adapter, and returns its name."""
    tensors = load_file(adapter / WEIGHTS_FILE)
    part = "dit" if component == "dit" else "layers"
    key = next(key for key in sorted(tensors) if f".{part}." in key and f"lora_{letter}" in key)
    tensors[key] = (tensors[key] * np.float32(value)).astype(np.float32)
    save_file(tensors, adapter / WEIGHTS_FILE)
    return key


@pytest.mark.parametrize("quantize", [{}, {"llm": 8, "dit": 8}])
@pytest.mark.parametrize(("component", "task"), [("llm", "ask"), ("dit", "generate")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite(
    small: Path, adapter: Path, tmp_path: Path, component: str, task: str, value: float, quantize: dict[str, int]
) -> None:
    key = change(adapter, component, "B", value)
    expected = rf"^{component}.* the adapter '.*adapter' holds NaN or infinity in {re.escape(key)}; get it or train it"
    with pytest.raises(NotFiniteError, match=expected):
        TASKS[task](MobileO.load(small, adapter=adapter, quantize=quantize))
    with pytest.raises(NotFiniteError, match=expected):
        fuse(small, adapter, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    TASKS[task](MobileO.load(small, adapter=adapter, adapter_scale=0))


@pytest.mark.parametrize("quantize", [{}, {"llm": 8, "dit": 8}])
@pytest.mark.parametrize(("component", "task"), [("llm", "ask"), ("dit", "generate")])
def test_an_adapter_that_is_far_too_strong(
    small: Path, adapter: Path, component: str, task: str, quantize: dict[str, int]
) -> None:
    change(adapter, component, "A", 1e15)
    change(adapter, component, "B", 1e20)
    with pytest.raises(NotFiniteError, match=r"^\w+ .* the adapter '.*' at scale 500 makes weights .*--adapter-scale"):
        TASKS[task](MobileO.load(small, adapter=adapter, adapter_scale=500.0, quantize=quantize, dtype="float32"))


def test_factors_whose_product_leaves_every_range(small: Path, adapter: Path, tmp_path: Path) -> None:
    for letter in "AB":
        change(adapter, "dit", letter, 1e25)
    with pytest.raises(NotFiniteError, match=r"^dit .* range of \w+; choose a smaller --adapter-scale than 1\.$"):
        fuse(small, adapter, tmp_path / "fused")
    with pytest.raises(NotFiniteError, match=r"^dit .* at scale 1 makes weights as large as inf"):
        TASKS["generate"](MobileO.load(small, adapter=adapter, dtype="float32"))


def test_an_adapter_that_leaves_float16(small: Path, adapter: Path) -> None:
    expected = r"^llm in float16 .* choose --dtype llm=bfloat16 or choose a smaller --adapter-scale than 500\.$"
    with pytest.raises(NotFiniteError, match=expected):
        TASKS["ask"](MobileO.load(small, adapter=adapter, adapter_scale=500.0, dtype="float16"))


@pytest.mark.parametrize("scale", [1e30, -1e30, 1e300, 10**400, float("nan"), float("inf")])
def test_a_scale_that_is_none(small: Path, adapter: Path, tmp_path: Path, scale: float) -> None:
    with pytest.raises(OptionError, match=r"the adapter's scale is .*; choose a number near 1"):
        MobileO.load(small, adapter=adapter, adapter_scale=scale)
    with pytest.raises(OptionError, match="the adapter's scale is"):
        fuse(small, adapter, tmp_path / "fused", scale=scale)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e300", "1" + 400 * "0"])
@pytest.mark.parametrize("name", ["lora_alpha", "alpha_pattern"])
def test_an_alpha_that_is_none(small: Path, adapter: Path, name: str, alpha: str) -> None:
    file = adapter / "adapter_config.json"
    text = file.read_text()
    if name == "lora_alpha":
        text = re.sub(r'"lora_alpha": [\d.]+', f'"lora_alpha": {alpha}', text)
    else:
        text = re.sub(r'"lora_alpha"', f'"alpha_pattern": {{".*": {alpha}}}, "lora_alpha"', text)
    file.write_text(text)
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json' (has {name} = |holds )"):
        MobileO.load(small, adapter=adapter)


@pytest.mark.parametrize("component", list(MATRICES))
def test_converting_weights_that_are_not_finite(spoilt: dict[str, Path], tmp_path: Path, component: str) -> None:
    for options in ({}, {"dtype": "bfloat16"}, {"precision": "small"}):
        with pytest.raises(NotFiniteError, match=f"^{component} has .*{component}.safetensors' holds NaN or infinity"):
            convert(spoilt[component], tmp_path / "made", **options)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


def test_converting_to_a_dtype_that_is_too_small(small: Path, tmp_path: Path) -> None:
    folder = spoil(small, tmp_path / "large", "dit", 1e8)
    with pytest.raises(NotFiniteError, match="its weights leave the range of float16; choose --dtype dit=bfloat16"):
        convert(folder, tmp_path / "made", dtype="float16")
    convert(folder, tmp_path / "made", dtype="bfloat16")


# Samplers


@pytest.mark.parametrize("scheduler", ["dpm++", "dpm++3", "euler"])
@pytest.mark.parametrize("flow_shift", [1e39, 1e300, 1e18, 1e-300])
def test_a_shift_that_leaves_no_noise_levels(scheduler: str, flow_shift: float) -> None:
    with pytest.raises(OptionError, match=r"flow shift .* choose one nearer to 3"):
        make_scheduler(scheduler, 20, flow_shift)


def test_shifts_that_are_usual() -> None:
    for scheduler in ("dpm++", "dpm++3", "euler"):
        for steps in (1, 2, 20, 1000):
            for flow_shift in (0.1, 1.0, 3.0, 12.0):
                assert make_scheduler(scheduler, steps, flow_shift).sigmas[-1] == 0


def test_the_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(NotFiniteError("dit", "why", "float16")))
    assert (error.component, error.cause, str(error)) == (
        "dit",
        "why",
        "dit in float16 has values that are not finite: why.",
    )
