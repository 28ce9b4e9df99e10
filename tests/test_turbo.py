"""Speed turbo: a few-step adapter beside the DiT, from the model's own folder or given by the user."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from few_steps import DRAWING, change_config, scale_tensors, write_student
from mlx.utils import tree_flatten
from PIL import Image
from random_adapter import write_random_adapter

from mobileo_mlx import GenerationResult, MobileO, identity
from mobileo_mlx.best_of import candidates
from mobileo_mlx.capabilities import capabilities
from mobileo_mlx.checkpoints.adapters import WEIGHTS_FILE
from mobileo_mlx.checkpoints.convert import convert, describe, fuse
from mobileo_mlx.checkpoints.export import export
from mobileo_mlx.checkpoints.turbo import install
from mobileo_mlx.errors import CheckpointError, NotFiniteError, OptionError, OutputError
from mobileo_mlx.generation_options import ModelSpeeds
from mobileo_mlx.models.layers import AdaptedLinear, dense_weight
from mobileo_mlx.training.lora import LoRAConfig

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def plain_model(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def turbo_model(plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turbo") / "model"
    shutil.copytree(plain_model, folder)
    write_student(folder / "turbo", folder)
    return folder


@pytest.fixture(scope="module")
def colour(turbo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as `finetune` writes it, of the language model and the DiT."""
    folder = tmp_path_factory.mktemp("adapters") / "colour"
    write_random_adapter(folder, turbo_model, LoRAConfig(rank=2, alpha=0.5, components=("llm", "dit")))
    return folder


@pytest.fixture
def model(turbo_model: Path) -> MobileO:
    return MobileO.load(turbo_model)


@pytest.fixture
def own(turbo_model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(turbo_model, tmp_path / "own"))


def same(*results: GenerationResult) -> bool:
    return all(np.array_equal(results[0].latents, result.latents) for result in results[1:])


# What is computed


@pytest.mark.parametrize("bits", [None, {"dit": 8}])
def test_both_are_drawn_in_turn_as_if_there_were_no_other(turbo_model: Path, plain_model: Path, bits) -> None:
    """Equal to the bit: without turbo to a model that has none, and with it to the adapter that is given by name."""
    model = MobileO.load(turbo_model, quantize=bits)
    first, quick, again = (
        model.generate(PROMPT, steps=2),
        model.generate(PROMPT, speed="turbo"),
        model.generate(PROMPT, steps=2),
    )
    assert same(first, again, MobileO.load(plain_model, quantize=bits).generate(PROMPT, steps=2))
    given = MobileO.load(plain_model, quantize=bits, adapter=turbo_model / "turbo")
    assert same(quick, given.generate(PROMPT))
    assert not same(quick, first)
    assert (quick.steps, quick.guidance_scale, quick.scheduler) == (4, 1.0, "euler")
    staged = MobileO.load(turbo_model, quantize=bits, keep_loaded=False)
    assert same(quick, staged.generate(PROMPT, speed="turbo"))
    assert same(first, staged.generate(PROMPT, steps=2))


def test_drawings_that_take_turns_step_by_step(model: MobileO) -> None:
    plain = model.stream_generate(PROMPT, steps=4)
    quick = model.stream_generate(PROMPT, speed="turbo")
    for _ in range(4):
        steps = next(plain), next(quick)
    results = next(plain), next(quick)
    assert not np.array_equal(steps[0].latents, steps[1].latents)
    assert same(results[0], model.generate(PROMPT, steps=4))
    assert same(results[1], model.generate(PROMPT, speed="turbo"))


def test_the_dit_is_in_memory_once(model: MobileO) -> None:
    dit = model.parts.dit
    before = dict(tree_flatten(dit.parameters()))
    other = model.parts.with_turbo(dit)
    assert not {id(module) for module in dit.modules()} & {id(module) for module in other.modules()}
    twin = dict(tree_flatten(other.parameters()))
    added = {name for name in twin if name.endswith((".a", ".b"))}
    assert added
    assert {id(array) for name, array in twin.items() if name not in added} == {id(one) for one in before.values()}
    after = dict(tree_flatten(dit.parameters()))
    assert before.keys() == after.keys()
    model.generate(PROMPT, speed="turbo")
    updates = model.parts._turbo
    model.generate(PROMPT, speed="turbo")
    assert model.parts._turbo is updates  # read once
    model.release()
    assert not model.parts._turbo


@pytest.mark.parametrize("bits", [None, {"dit": 8}])
def test_another_adapter_and_turbo_add_up(turbo_model: Path, colour: Path, bits) -> None:
    turbo = turbo_model / "turbo"
    result = MobileO.load(turbo_model, quantize=bits, adapter=colour).generate(PROMPT, speed="turbo")
    assert (result.options["speed"], result.adapter) == ("turbo", str(colour))
    for order in ([colour, turbo], [turbo, colour]):
        assert same(result, MobileO.load(turbo_model, quantize=bits, adapter=order).generate(PROMPT))
    assert not same(result, MobileO.load(turbo_model, quantize=bits).generate(PROMPT, speed="turbo"))


def test_edits_and_candidates(model: MobileO, turbo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_MOST_AT_ONCE", 1)  # so that the DiT is donated to the last of several batches
    image = Image.new("RGB", model.default_size, "red")
    given = MobileO.load(turbo_model, adapter=turbo_model / "turbo")
    staged = MobileO.load(turbo_model, keep_loaded=False)
    for options in ({"strength": 0.9}, {"best_of": 2}, {"best_of": 2, "until_pass": True, "strength": 0.9}):
        result = model.edit(image, "make it blue", speed="turbo", **options)
        assert same(result, given.edit(image, "make it blue", **options))
        assert same(result, staged.edit(image, "make it blue", speed="turbo", **options))
        assert result.metadata()["speed"] == "turbo"


def test_a_strength_below_the_noise_levels_of_few_steps(model: MobileO) -> None:
    """Of four steps of DPM-Solver++ they are 1, 0.9, 0.75 and 0.5, with the flow shift 3."""
    options = {"speed": "turbo", "scheduler": "dpm++"}
    with pytest.raises(
        OptionError, match=r"strength 0.4 leaves none of the 4 steps; choose 0.5 or more, or more steps"
    ):
        model.check("edit", "make it blue", **options, strength=0.4)
    assert model.check("edit", "make it blue", **options, strength=0.5).schedule[1] == 3


@pytest.mark.parametrize("quantized", [False, True])
def test_the_weight_of_an_adapted_layer(quantized: bool) -> None:
    """With which cross-attention absorbs its projections: the layer and what is beside it."""
    plain = nn.Linear(64, 8)
    layer = AdaptedLinear(plain.to_quantized() if quantized else plain, mx.random.normal((64, 2)), mx.ones((2, 8)))
    x = mx.random.normal((3, 64))
    weight = dense_weight(layer)
    assert weight is not None
    assert np.allclose(layer(x), x @ weight.T + plain.bias, atol=1e-4)
    assert dense_weight(nn.LayerNorm(8)) is None


# What is recorded


def test_a_picture_says_how_it_was_drawn(model: MobileO, turbo_model: Path) -> None:
    quick = model.generate(PROMPT, speed="turbo").metadata()
    assert quick["speed"] == "turbo"
    assert {name: quick[name] for name in DRAWING} == DRAWING
    assert "speed" not in model.generate(PROMPT, steps=1).metadata()
    given = MobileO.load(turbo_model, adapter=turbo_model / "turbo").generate(PROMPT, speed="turbo").metadata()
    assert "speed" not in given  # the adapter says it all
    assert given["adapter"] == str(turbo_model / "turbo")


def test_the_identity_of_a_model_tells_its_turbo(own: Path, plain_model: Path) -> None:
    before = identity.of(MobileO.load(own))
    scale_tensors(own / "turbo", 2)
    after, without = identity.of(MobileO.load(own)), identity.of(MobileO.load(plain_model))
    assert after["turbo"] != before["turbo"]
    change_config(own / "turbo", drawing={**DRAWING, "steps": 3})
    assert identity.of(MobileO.load(own))["turbo"] != after["turbo"]
    assert {name: value for name, value in before.items() if name != "turbo"} == without


# What an adapter says


def test_the_values_of_an_adapter_are_defaults(turbo_model: Path, tmp_path: Path) -> None:
    drawing = {"steps": 2, "guidance_scale": 1, "scheduler": "euler", "flow_shift": 2, "guidance_interval": None}
    student = write_student(tmp_path / "student", turbo_model, drawing)
    model = MobileO.load(turbo_model, adapter=student)
    for options in ({}, {"speed": "turbo"}, {"speed": "default"}):  # it takes the place of the model's own
        settings = model.check("generate", PROMPT, **options)
        assert {name: settings.options[name] for name in drawing} == {**drawing, "flow_shift": 2.0}
        assert settings.options["speed"] is None
    explicit = model.check("edit", PROMPT, steps=3, scheduler="dpm++", guidance_scale=1.5)
    assert (explicit.steps, explicit.scheduler, explicit.guidance_scale, explicit.flow_shift) == (3, "dpm++", 1.5, 2)
    with pytest.raises(OptionError, match="speed fast is for drawing in many steps, and an adapter is loaded"):
        model.check("generate", PROMPT, speed="fast")
    with pytest.raises(OptionError, match="a negative prompt needs guidance"):
        model.check("generate", PROMPT, negative_prompt="a dog")
    none = MobileO.load(turbo_model, adapter=student, adapter_scale=0)
    assert none.check("generate", PROMPT).steps == 20
    assert none.check("generate", PROMPT, speed="turbo").options["speed"] == "turbo"
    with pytest.raises(OptionError, match="each draw in few steps of their own; give one of them"):
        MobileO.load(turbo_model, adapter=[student, turbo_model / "turbo"])


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ({"steps": 0}, "has a drawing that can't be: steps 0 is not possible; choose 1 to 10000"),
        ({"steps": True}, "choose a whole number"),
        ({"steps": "4"}, "choose a whole number"),
        ({"guidance_scale": 0.5}, "guidance scale 0.5 is not possible"),
        ({"scheduler": "lcm"}, "there is no scheduler 'lcm'"),
        ({"scheduler": ["euler"]}, "choose a text"),
        ({"guidance_interval": 1}, "guidance interval 1 is not possible"),
        ({"seed": 1}, "has drawing.seed; only steps, guidance_scale, guidance_interval, scheduler, flow_shift can be"),
        ({"speed": "turbo"}, "has drawing.speed; only"),
        ([4], "has drawing = [4]; it has to be a map"),
    ],
)
def test_what_an_adapter_can_t_say(own: Path, drawing, message: str) -> None:
    change_config(own / "turbo", drawing=drawing)
    with pytest.raises(CheckpointError, match=re.escape(message)) as raised:
        MobileO.load(own)
    assert "adapter_config.json" in str(raised.value)


def test_a_damaged_turbo_is_found_when_the_model_is_loaded(own: Path, colour: Path) -> None:
    folder = own / "turbo"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            MobileO.load(own)

    change_config(folder, drawing={})
    refused(r"can't serve as speed turbo: its adapter_config.json does not say .*; get another one, or move")
    shutil.rmtree(folder)
    shutil.copytree(colour, folder)
    change_config(folder, drawing=DRAWING)
    refused("it holds more than low-rank updates of the dit")
    (folder / WEIGHTS_FILE).unlink()
    refused(WEIGHTS_FILE)
    shutil.rmtree(folder)
    write_student(folder, own)
    change_config(folder, r=3)
    refused("is for another model.*of the wrong shape")


def test_not_finite_because_of_turbo(own: Path) -> None:
    scale_tensors(own / "turbo", float("nan"))
    model = MobileO.load(own)
    model.generate(PROMPT, steps=1)
    with pytest.raises(NotFiniteError, match="turbo' holds NaN or infinity in"):
        model.generate(PROMPT, speed="turbo")


# What a model has


def test_a_model_without_it(plain_model: Path) -> None:
    model = MobileO.load(plain_model)
    with pytest.raises(
        OptionError, match=r"brings none along: train one .*consistency\) and .* or choose fast or faster"
    ):
        model.generate(PROMPT, speed="turbo")
    assert model.check("generate", PROMPT, speed="default") == model.check("generate", PROMPT)


def test_capabilities_of_a_model(model: MobileO, plain_model: Path, turbo_model: Path) -> None:
    def of(speeds: ModelSpeeds | None):
        found = capabilities(speeds)
        options = {option["name"]: option for option in found["tasks"]["edit"]}
        return found["speeds"], options["speed"]["choices"], options["steps"]["default"]

    names = ["default", "fast", "faster"]
    assert of(None)[1:] == ([*names, "turbo"], 20)
    assert of(model.speeds)[0]["turbo"] == DRAWING
    assert of(model.speeds)[1:] == ([*names, "turbo"], 20)
    assert "turbo" not in of(MobileO.load(plain_model).speeds)[0]
    assert of(MobileO.load(plain_model).speeds)[1] == names
    assert of(MobileO.load(turbo_model, adapter=turbo_model / "turbo").speeds) == ({}, ["default", "turbo"], 4)
    assert json.dumps(capabilities(model.speeds))


def test_a_student_becomes_the_turbo_of_its_model(plain_model: Path, turbo_model: Path, colour: Path, tmp_path: Path):
    folder = Path(shutil.copytree(plain_model, tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"can't serve as speed turbo: its adapter_config\.json does not say"):
        install(colour, folder)
    assert install(turbo_model / "turbo", folder) == folder / "turbo"
    assert (folder / "turbo" / WEIGHTS_FILE).stat().st_size < 0.6 * (
        turbo_model / "turbo" / WEIGHTS_FILE
    ).stat().st_size
    model = MobileO.load(folder)
    assert model.parts.turbo.drawing == DRAWING
    expected = MobileO.load(turbo_model).generate(PROMPT, speed="turbo").latents
    np.testing.assert_allclose(model.generate(PROMPT, speed="turbo").latents, expected, atol=0.02)
    with pytest.raises(OutputError, match="turbo"):
        install(turbo_model / "turbo", folder)


def test_what_is_written_of_a_model_keeps_it(turbo_model: Path, colour: Path, tmp_path: Path) -> None:
    small = convert(turbo_model, tmp_path / "small", quantize={"dit": 8})
    assert small.turbo == DRAWING
    turbo = tmp_path / "small" / "turbo"
    quick = MobileO.load(tmp_path / "small").generate(PROMPT, speed="turbo")
    assert same(quick, MobileO.load(tmp_path / "small", adapter=turbo).generate(PROMPT))
    assert same(quick, MobileO.load(turbo_model, quantize={"dit": 8}).generate(PROMPT, speed="turbo"))
    assert fuse(turbo_model, colour, tmp_path / "fused").turbo == DRAWING
    export(tmp_path / "upstream", "upstream", model=turbo_model)
    assert describe(tmp_path / "upstream").turbo == DRAWING
    export(tmp_path / "language", "mlx-lm", model=turbo_model)
    assert not (tmp_path / "language" / "turbo").exists()


def test_a_student_is_merged_into_what_is_written(turbo_model: Path, tmp_path: Path) -> None:
    """Which no longer says how it is drawn with; a note does."""
    student, notes = turbo_model / "turbo", []
    assert fuse(turbo_model, student, tmp_path / "fused", dtype="float32", note=notes.append).turbo is None
    assert any("draw with steps = 4, guidance_scale = 1.0, scheduler = euler" in note for note in notes)
    fused = MobileO.load(tmp_path / "fused", dtype="float32").generate(PROMPT, **DRAWING)
    beside = MobileO.load(turbo_model, dtype="float32", adapter=student).generate(PROMPT)
    np.testing.assert_allclose(fused.latents, beside.latents, atol=1e-3)
    export(tmp_path / "upstream", "upstream", model=turbo_model, adapter=student)
    assert describe(tmp_path / "upstream").turbo is None
