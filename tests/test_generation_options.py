from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.errors import OptionError
from mobileo_mlx.generation_options import OPTIONS, SPEED_COSTS, SPEEDS, EditOptions, GenerationSettings, resolve
from mobileo_mlx.options import declared
from mobileo_mlx.schedulers import SCHEDULERS

HUGE = [10**5000]  # in a list, as Python does not print it, and pytest would


@pytest.fixture(scope="module")
def config(tiny_model: Path):
    return Checkpoint.open(tiny_model).config


def resolved(config, **options) -> GenerationSettings:
    return resolve(config, "generate", "a cat", **options)


def test_options_are_attributes_of_settings(config) -> None:
    settings = resolved(config, steps=3)
    assert (settings.steps, settings.scheduler, settings.strength) == (3, "dpm++", None)
    assert "guidance_scale" in dir(settings)
    with pytest.raises(AttributeError, match="has no attribute 'step'"):
        _ = settings.step
    with pytest.raises(TypeError, match="no option 'step'"):
        resolved(config, step=3)
    with pytest.raises(TypeError, match="no option 'strength'"):
        resolved(config, strength=0.5)


def test_each_option_is_declared_with_its_form() -> None:
    options = declared(EditOptions)
    assert (options["seed"].kind, options["seed"].several) == (int, True)
    assert (options["steps"].kind, options["steps"].several, options["steps"].json_types) == (int, False, (int,))
    assert options["guidance_scale"].json_types == (int, float)
    assert options["guidance_interval"].json_types == (list,)
    assert options["negative_prompt"].json_types == (str,)
    assert options["guidance_interval"].parse("0.25,1") == options["guidance_interval"].parse("0.25:1") == (0.25, 1.0)
    assert options["strength"].parse("0.5") == 0.5
    assert set(options) - set(declared(OPTIONS["generate"])) == {"strength"}
    assert tuple(options["scheduler"].choices) == tuple(SCHEDULERS)


@pytest.mark.parametrize("strength", [0, 1.5, -1, float("nan")])
def test_what_is_no_strength(config, strength: float) -> None:
    with pytest.raises(OptionError, match=r"strength .* is not possible; choose a number above 0 and up to 1\."):
        resolve(config, "edit", "redder", strength=strength)
    assert resolve(config, "edit", "redder", strength=1).schedule[1] == 0
    assert resolve(config, "edit", "redder", strength=0.5).schedule[1] > 0


def test_numbers_of_other_libraries_are_pythons_own(config) -> None:
    settings = resolved(
        config,
        steps=np.int64(2),
        width=np.uint16(64),
        height=mx.array(64),
        guidance_scale=np.float32(1.5),
        flow_shift=np.array(2),
        seed=np.int64(3),
    )
    assert json.dumps([settings.options, settings.seeds])
    assert (settings.steps, settings.width, settings.height, settings.guidance_scale) == (2, 64, 64, 1.5)
    assert (type(settings.steps), type(settings.flow_shift)) == (int, float)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 2.0, "steps 2.0 is not possible; choose a whole number."),
        ("steps", "2", "steps '2' is not possible; choose a whole number."),
        ("steps", True, "steps True is not possible; choose a whole number."),
        ("steps", [2], "steps [2] is not possible; choose a whole number."),
        ("steps", 10**9, "steps 1000000000 is not possible; choose 1 to 10000."),
        ("steps", HUGE, "steps is too large; choose one nearer to 20."),
        ("width", 64.0, "width 64.0 is not possible; choose a whole number."),
        ("width", HUGE, "size of thousands of digitsx64 is not possible; each side is 32 to 4096 pixels."),
        ("guidance_scale", "3", "guidance scale '3' is not possible; choose a number."),
        ("guidance_scale", 10**400, "guidance scale is too large; choose one nearer to 1.5."),
        ("guidance_scale", 1 + 1j, "guidance scale (1+1j) is not possible; choose a number."),
        ("flow_shift", np.zeros(2), "flow shift array([0., 0.]) is not possible; choose a number."),
        ("negative_prompt", 3, "negative prompt 3 is not possible; choose a text."),
        ("scheduler", ["euler"], "scheduler ['euler'] is not possible; choose a text."),
        ("speed", ["fast"], "speed ['fast'] is not possible; choose a text."),
        ("seed", 10**400, "seed 1000"),
        ("seed", HUGE, "seed of thousands of digits is not possible"),
        ("guidance_interval", ["a" * 1000, 1], "guidance interval ['aaa"),
    ],
)
def test_values_of_a_wrong_type_get_a_sentence(config, option: str, value: object, message: str) -> None:
    with pytest.raises(OptionError) as error:
        resolved(config, **{"height": 64, option: HUGE[0] if value is HUGE else value})
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 200


def test_none_is_the_default(config) -> None:
    assert resolved(config, **dict.fromkeys(declared(OPTIONS["generate"]))) == resolved(config)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (None, [0]),
        (2**64 - 1, [2**64 - 1]),
        (np.int64(5), [5]),
        (np.uint64(2**64 - 1), [2**64 - 1]),
        (np.arange(3), [0, 1, 2]),
        (np.array(5), [5]),
        ((4, np.int32(2)), [4, 2]),
        (range(2), [0, 1]),
    ],
)
def test_seeds(config, seed: object, expected: list[int]) -> None:
    seeds = resolved(config, seed=seed).seeds
    assert seeds == expected
    assert all(type(s) is int for s in seeds)  # JSON knows no other


@pytest.mark.parametrize("seed", [True, np.bool_(True), [1, False], 1.0, "1", -1, 2**64, [], np.array(1.5)])
def test_what_is_no_seed(config, seed: object) -> None:
    with pytest.raises(OptionError, match="whole number from 0 to"):
        resolved(config, seed=seed)


def test_a_guidance_interval_is_checked(config) -> None:
    assert resolved(config).guidance_interval is None
    assert resolved(config, guidance_interval=[0.25, 1]).guidance_interval == (0.25, 1.0)  # as JSON has it


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.9, 0.3), (-0.1, 0.5), (0.5, 1.1), (0.5, float("nan")), (0.5,), (0, 0.5, 1), "0.3", 0.5]
)
def test_what_is_no_guidance_interval(config, interval: object) -> None:
    with pytest.raises(OptionError, match=r"^guidance interval .* is not possible"):
        resolved(config, guidance_interval=interval)


@pytest.mark.parametrize("name", SPEEDS)
def test_a_speed_is_settings_and_others_win(config, name: str) -> None:
    speed = SPEEDS[name]
    assert speed["steps"] < resolved(config).steps == 20
    settings = resolved(config, speed=name)
    assert settings == resolved(config, **speed)
    plain: dict[str, Any] = {"steps": 20, "guidance_scale": 1.5, "guidance_interval": (0, 1), "scheduler": "dpm++"}
    assert resolved(config, speed=name, **plain) == resolved(config, guidance_interval=(0, 1))
    assert resolved(config, speed=name, scheduler="euler").steps == speed["steps"]


def test_the_costs_of_speeds_are_those_of_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "presets.md").read_text(encoding="utf-8")
    words = {"images": "generate", "edits": "edit"}
    row = r"^\| (images|edits), `(\w+)` \| (\d+) \| ([\d.]+) % \| ([\d.]+) % \| [^|]+ \| ([\d.]+) \|$"
    rows = re.findall(row, page, re.MULTILINE)
    found: dict[str, dict[str, Any]] = {}
    for task, name, n, default_right, right, speed in rows:
        measured = {"n": int(n), "right": float(right), "default_right": float(default_right), "speed": float(speed)}
        found.setdefault(name, {})[words[task]] = measured
    assert found == SPEED_COSTS
    assert set(SPEEDS) <= set(SPEED_COSTS) <= {*SPEEDS, "turbo"}


def test_a_speed_can_say_how_strongly_to_guide(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEEDS, "fast", {"guidance_scale": 2.0})
    assert resolved(config).guidance_scale == 1.5
    assert resolved(config, speed="fast").guidance_scale == 2.0
    assert resolved(config, speed="fast", guidance_scale=1.25).guidance_scale == 1.25
    assert resolved(config, speed="fast", negative_prompt="a dog").negative_prompt == "a dog"


def test_an_unknown_speed(config) -> None:
    with pytest.raises(OptionError, match=f"no speed 'small'; there are default, {', '.join(SPEEDS)}, turbo"):
        resolved(config, speed="small")


def test_preset_is_the_old_name_of_speed(config) -> None:
    assert resolved(config, preset="fast") == resolved(config, speed="fast")
    with pytest.raises(OptionError, match="give only speed"):
        resolved(config, preset="fast", speed="fast")


@pytest.mark.parametrize("option", [{"seed": 0}, {"width": 128}, {"height": 128}])
def test_initial_latents_stand_alone(config, option: dict[str, int]) -> None:
    latents = mx.zeros((2, 4, 3, config.dit.in_channels))
    settings = resolved(config, initial_latents=latents)
    assert (settings.width, settings.height, settings.seeds) == (96, 128, [])
    with pytest.raises(OptionError, match=f"stand for {next(iter(option))};"):
        resolved(config, initial_latents=latents, **option)
