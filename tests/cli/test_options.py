from __future__ import annotations

import inspect
import re

import pytest
from mobileo_cli import edit, generate, options

from mobileo_mlx.chat import Chat
from mobileo_mlx.drawing import settle
from mobileo_mlx.errors import OptionError
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
    defaults = inspect.signature(settle).parameters
    assert int(shown_default(text, "--steps")) == defaults["steps"].default
    assert float(shown_default(text, "--guidance-scale")) == defaults["guidance_scale"].default
    assert shown_default(text, "--scheduler") == defaults["scheduler"].default
    assert shown_default(text, "--model") == DEFAULT_MODEL == options.DEFAULT_MODEL
    assert all(name in text for name in SCHEDULERS)


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
