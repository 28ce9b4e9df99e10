from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.errors import OptionError
from mobileo_mlx.generation_options import OPTIONS, SPEEDS, EditOptions, GenerationSettings, resolve
from mobileo_mlx.options import declared
from mobileo_mlx.schedulers import SCHEDULERS


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


def test_a_speed_can_say_how_strongly_to_guide(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEEDS, "strong", {"guidance_scale": 2.0})
    assert resolved(config).guidance_scale == 1.5
    assert resolved(config, speed="strong").guidance_scale == 2.0
    assert resolved(config, speed="strong", guidance_scale=1.25).guidance_scale == 1.25
    assert resolved(config, speed="strong", negative_prompt="a dog").negative_prompt == "a dog"


def test_an_unknown_speed(config) -> None:
    with pytest.raises(OptionError, match=f"no speed 'small'; there are {', '.join(SPEEDS)}"):
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
