from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.errors import OptionError
from mobileo_mlx.generation_options import SAMPLING_PRESETS, GenerationOptions, GenerationSettings, resolve_settings


@pytest.fixture(scope="module")
def config(tiny_model: Path):
    return Checkpoint.open(tiny_model).config


def settled(config, **options) -> GenerationSettings:
    return resolve_settings(config, "generate", "a cat", **options)


def test_the_options_are_those_that_are_settled() -> None:
    parameters = inspect.signature(resolve_settings).parameters
    options = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert GenerationOptions.__annotations__.keys() == options - {"strength"}


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
    seeds = settled(config, seed=seed).seeds
    assert seeds == expected
    assert all(type(s) is int for s in seeds)  # JSON knows no other


@pytest.mark.parametrize("seed", [True, np.bool_(True), [1, False], 1.0, "1", -1, 2**64, [], np.array(1.5)])
def test_what_is_no_seed(config, seed: object) -> None:
    with pytest.raises(OptionError, match="whole number from 0 to"):
        settled(config, seed=seed)


def test_a_guidance_interval_is_checked(config) -> None:
    assert settled(config).guidance_interval is None
    assert settled(config, guidance_interval=[0.25, 1]).guidance_interval == (0.25, 1.0)  # as JSON has it


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.9, 0.3), (-0.1, 0.5), (0.5, 1.1), (0.5, float("nan")), (0.5,), (0, 0.5, 1), "0.3", 0.5]
)
def test_what_is_no_guidance_interval(config, interval: object) -> None:
    with pytest.raises(OptionError, match=r"^guidance interval .* is not possible"):
        settled(config, guidance_interval=interval)


@pytest.mark.parametrize("name", SAMPLING_PRESETS)
def test_a_preset_is_settings_and_others_win(config, name: str) -> None:
    preset = SAMPLING_PRESETS[name]
    assert preset["steps"] < settled(config).steps == 20
    settings = settled(config, preset=name)
    assert settings == settled(config, **preset)
    plain: dict[str, Any] = {"steps": 20, "guidance_scale": 1.5, "guidance_interval": (0, 1), "scheduler": "dpm++"}
    assert settled(config, preset=name, **plain) == settled(config, guidance_interval=(0, 1))
    assert settled(config, preset=name, scheduler="euler").steps == preset["steps"]


def test_a_preset_can_say_how_strongly_to_guide(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLING_PRESETS, "strong", {"guidance_scale": 2.0})
    assert settled(config).guidance_scale == 1.5
    assert settled(config, preset="strong").guidance_scale == 2.0
    assert settled(config, preset="strong", guidance_scale=1.25).guidance_scale == 1.25
    assert settled(config, preset="strong", negative_prompt="a dog").negative_prompt == "a dog"


def test_an_unknown_preset_of_drawing(config) -> None:
    with pytest.raises(OptionError, match=f"no preset 'small' of drawing; there are {', '.join(SAMPLING_PRESETS)}"):
        settled(config, preset="small")


@pytest.mark.parametrize("option", [{"seed": 0}, {"width": 128}, {"height": 128}])
def test_initial_latents_stand_alone(config, option: dict[str, int]) -> None:
    latents = mx.zeros((2, 4, 3, config.dit.in_channels))
    settings = settled(config, initial_latents=latents)
    assert (settings.width, settings.height, settings.seeds) == (96, 128, [])
    with pytest.raises(OptionError, match=f"stand for {next(iter(option))};"):
        settled(config, initial_latents=latents, **option)
