import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from mobileo_cli import image_job, options
from PIL import Image

from mobileo_mlx.checkpoints.quantize import PRECISIONS
from mobileo_mlx.errors import ImageError, OptionError
from mobileo_mlx.generation_options import OPTIONS, SPEED_NAMES, SPEEDS, AnswerSettings, GenerationOptions
from mobileo_mlx.images import save_png
from mobileo_mlx.options import Option
from mobileo_mlx.pipeline import DEFAULT_MODEL, MobileO
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
    assert int(shown_default(text, "--steps")) == 20
    assert float(shown_default(text, "--guidance-scale")) == 1.5
    assert shown_default(text, "--scheduler") == "dpm++"
    assert shown_default(text, "--model") == DEFAULT_MODEL == options.DEFAULT_MODEL
    assert all(name in text for name in (*SCHEDULERS, *SPEEDS))


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_help_shows_the_defaults_of_answering(here, command: str) -> None:
    text = here(command, "--help").out
    for option in ("max_tokens", "temperature", "top_p", "seed"):
        assert float(shown_default(text, "--" + option.replace("_", "-"))) == getattr(AnswerSettings(), option)


class OneMore(GenerationOptions, total=False):
    """The options of drawing, and one that does not exist."""

    sparkle: Annotated[
        float | None,
        Option("How much it sparkles.", 0.25, metavar="X", low=0, high=2, range="0 to 2"),
    ]


def test_an_option_that_is_declared_is_everywhere(
    tiny_model: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python, in a command with its help, in its checks, in metadata, and in their replay."""
    monkeypatch.setitem(OPTIONS, "generate", OneMore)
    monkeypatch.chdir(work)

    def command(prompt: Annotated[str | None, typer.Argument()] = None, **given: Any) -> None:
        jobs.append(image_job.plan("generate", prompt, given, text_name="PROMPT"))

    jobs: list[image_job.Job] = []
    program = typer.Typer(rich_markup_mode=None)
    program.command()(options.takes(options.drawing("generate"))(command))
    run = typer.main.get_command(program)
    assert "--sparkle X" in run.get_help(typer.Context(run))
    assert "[default: 0.25]" in run.get_help(typer.Context(run))
    run(["a cat", "--sparkle", "1.5"], standalone_mode=False)
    assert jobs.pop().options == {"sparkle": 1.5}
    with pytest.raises(OptionError, match=r"sparkle 3\.0 is not possible; choose 0 to 2"):
        run(["a cat", "--sparkle", "3"], standalone_mode=False)

    model = MobileO.load(tiny_model)
    assert model.generate("a cat", steps=1).sparkle == 0.25
    result = model.generate("a cat", steps=1, sparkle=1.5)  # type: ignore[call-arg]
    assert result.metadata()["sparkle"] == 1.5
    save_png(result.images[0], work / "cat.png", result.metadata())
    run(["--from-image", "cat.png"], standalone_mode=False)
    assert jobs.pop().options["sparkle"] == 1.5
    run(["--from-image", "cat.png", "--sparkle", "0.5"], standalone_mode=False)
    assert jobs.pop().options["sparkle"] == 0.5
    save_png(result.images[0], work / "damaged.png", {**result.metadata(), "sparkle": "much"})
    with pytest.raises(ImageError, match="no valid sparkle"):
        run(["--from-image", "damaged.png"], standalone_mode=False)


@pytest.mark.parametrize(("text", "size"), [("512x384", (512, 384)), ("64X32", (64, 32)), (" 64×32 ", (64, 32))])
def test_size(text: str, size: tuple[int, int]) -> None:
    assert options.parse_size(text) == size


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


@pytest.mark.parametrize("command", ["generate", "edit", "ask", "chat", "convert"])
def test_names_of_precisions_and_speeds(here, tiny_model: Path, command: str) -> None:
    """Those that are there are in the help, and in the error for another one."""
    Image.new("RGB", (32, 32), "red").save("in.png")
    given = {"generate": ["a cat"], "edit": ["in.png", "bluer"], "ask": ["in.png", "what?"], "chat": []}
    arguments = [str(tiny_model), "out"] if command == "convert" else [*given[command], "-m", str(tiny_model)]
    speeds = {"speed": SPEED_NAMES} if command in ("generate", "edit") else {}
    for option, names in {"precision": PRECISIONS, **speeds}.items():
        result = here(command, *arguments, f"--{option}", "tiny")
        assert result.status == 2
        assert f"no {option} 'tiny'; there are {', '.join(names)}." in result.err
        assert all(name in here(command, "--help").out for name in names)
    result = here(command, *arguments, "--preset", "tiny")
    assert result.status == 2
    assert f"no preset 'tiny'; there are {', '.join([*PRECISIONS, *(SPEEDS if speeds else ())])}." in result.err
    assert not Path("out").exists()


def test_preset_is_the_old_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    def resolved(text: str | None, **others: str) -> tuple[str | None, str | None]:
        values = {"preset": text, "precision": None, "speed": None, **others}
        found = options.resolve_preset(values, speeds=True)
        assert "preset" not in found
        return found["precision"], found["speed"]

    assert resolved(None, speed="fast") == (None, "fast")
    assert capsys.readouterr().err == ""
    assert resolved("small") == ("small", None)
    assert resolved("fast", precision="full") == ("full", "fast")
    assert resolved("fast, small") == resolved("small,fast") == ("small", "fast")
    assert "note: --preset is now --precision small --speed fast." in capsys.readouterr().err.splitlines()
    with pytest.raises(OptionError, match="only one of small, full can be"):
        resolved("small,full")
    with pytest.raises(OptionError, match="the old spelling of --speed; give only --speed"):
        resolved("fast", speed="faster")


@pytest.mark.parametrize("text", ["0.3", "0.3,x", "0.1,0.2,0.3", ""])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(OptionError, match=f"--guidance-interval {text}: write LOW,HIGH, for example 0.3,0.95"):
        options.given_options(GenerationOptions, {"guidance_interval": text})
