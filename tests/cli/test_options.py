from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from mobileo_cli import edit, generate, options
from PIL import Image

from mobileo_mlx.chat import Chat
from mobileo_mlx.checkpoints.quantize import PRESETS
from mobileo_mlx.errors import OptionError
from mobileo_mlx.generation_options import GUIDANCE_SCALE, SAMPLING_PRESETS, SCHEDULER, STEPS
from mobileo_mlx.pipeline import DEFAULT_MODEL
from mobileo_mlx.schedulers import SCHEDULERS


def shown_default(result: str, option: str) -> str:
    """The default that a help text shows for an option."""
    text = re.sub(r"\s+", " ", result)
    found = re.search(rf"{re.escape(option)} [^\[]*\[default: ([^\]]*)\]", text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_help_shows_the_defaults_of_drawing(here, command: str) -> None:
    text = here(command, "--help").out
    assert int(shown_default(text, "--steps")) == STEPS
    assert float(shown_default(text, "--guidance-scale")) == GUIDANCE_SCALE
    assert shown_default(text, "--scheduler") == SCHEDULER
    assert shown_default(text, "--model") == DEFAULT_MODEL == options.DEFAULT_MODEL
    assert all(name in text for name in (*SCHEDULERS, *SAMPLING_PRESETS))


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_help_shows_the_defaults_of_answering(here, command: str) -> None:
    text = here(command, "--help").out
    defaults = inspect.signature(Chat.stream).parameters
    for option in ("max_tokens", "temperature", "top_p", "seed"):
        assert float(shown_default(text, "--" + option.replace("_", "-"))) == defaults[option].default


def test_edit_has_all_options_of_generate() -> None:
    drawn = set(inspect.signature(generate.command).parameters) - {"prompt"}
    edited = set(inspect.signature(edit.command).parameters) - {"image", "instruction", "strength"}
    assert drawn == edited


@pytest.mark.parametrize(("text", "size"), [("512x384", (512, 384)), ("64X32", (64, 32)), (" 64×32 ", (64, 32))])
def test_size(text: str, size: tuple[int, int]) -> None:
    assert options.parse_size(text) == {"width": size[0], "height": size[1]}


@pytest.mark.parametrize("text", ["512", "512x", "x", "-64x64", "64x64x64", "64.0x64", "٦٤x٦٤", "9" * 5000 + "x64", ""])
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="WIDTHxHEIGHT"):
        options.parse_size(text)


def test_seeds() -> None:
    assert options.expand_seeds([3], None) == [3]
    assert options.expand_seeds([3, 9], 2) == [3, 4, 9, 10]
    assert options.expand_seeds([3, 4], 2) == [3, 4, 5]
    first, second = options.expand_seeds(None, 2)
    assert second == first + 1
    assert options.expand_seeds([2**64 - 1], None) == [2**64 - 1]
    assert options.expand_seeds([2**64 - 3], 3) == [2**64 - 3, 2**64 - 2, 2**64 - 1]


@pytest.mark.parametrize(("seeds", "count"), [([-1], 1), ([2**64], 1), ([2**64 - 1], 2), ([1], 0), ([1], 10**9)])
def test_seeds_that_cannot_be(seeds: list[int], count: int) -> None:
    with pytest.raises(OptionError):
        options.expand_seeds(seeds, count)


@pytest.mark.parametrize(
    ("command", "arguments", "kept"),
    [
        ("generate", [], False),
        ("generate", ["-n", "2"], True),
        ("generate", ["-n", "2", "--staged"], False),
        ("generate", ["--keep-loaded"], True),
        ("edit", [], False),
        ("edit", ["--seed", "1", "--seed", "2"], True),
        ("ask", [], False),
        ("chat", [], True),
        ("chat", ["--staged"], False),
    ],
)
def test_what_stays_loaded(
    here, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], kept: bool
) -> None:
    Image.new("RGB", (32, 32), "red").save("in.png")
    given = {
        "generate": ["a cat", "--steps", "1"],
        "edit": ["in.png", "bluer", "--steps", "1"],
        "ask": ["in.png", "what?", "--max-tokens", "1"],
        "chat": [],
    }
    models = []
    load = options.load
    monkeypatch.setattr(options, "load", lambda *a, **k: models.append(load(*a, **k)) or models[-1])
    assert here(command, *given[command], "-m", tiny_model, *arguments).status == 0
    assert [model.parts.keep_loaded for model in models] == [kept]
    if not kept:
        assert len(models[0].parts.loaded) <= 2


def test_presets_are_bits() -> None:
    assert options.parse_quantize(None) is None
    assert options.parse_quantize(None, "full") == {}
    assert options.parse_quantize(None, "small") == PRESETS["small"]
    assert options.parse_quantize("dit=6", "small") == {**PRESETS["small"], "dit": 6}


@pytest.mark.parametrize("command", ["generate", "edit", "ask", "chat", "convert"])
def test_an_unknown_preset_lists_those_that_are_there(here, tiny_model: Path, command: str) -> None:
    Image.new("RGB", (32, 32), "red").save("in.png")
    given = {"generate": ["a cat"], "edit": ["in.png", "bluer"], "ask": ["in.png", "what?"], "chat": []}
    arguments = [str(tiny_model), "out"] if command == "convert" else [*given[command], "-m", str(tiny_model)]
    result = here(command, *arguments, "--preset", "tiny")
    assert result.status == 2
    known = [*PRESETS, *(SAMPLING_PRESETS if command in ("generate", "edit") else ())]
    assert f"no preset 'tiny'; there are {', '.join(known)}." in result.err
    assert not Path("out").exists()
    assert all(name in here(command, "--help").out for name in known)


def test_presets_of_bits_and_of_drawing() -> None:
    assert options.parse_preset(None) == (None, None)
    assert options.parse_preset("small") == ("small", None)
    assert options.parse_preset("fast") == (None, "fast")
    assert options.parse_preset("small,faster") == ("small", "faster")
    assert options.parse_preset("fast, small") == options.parse_preset("small,fast") == ("small", "fast")
    with pytest.raises(OptionError, match="only one of small, full can be"):
        options.parse_preset("small,full")


@pytest.mark.parametrize("text", ["0.3", "0.3,x", "0.1,0.2,0.3", ""])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(OptionError, match="write LOW,HIGH"):
        options.parse_interval(text)
