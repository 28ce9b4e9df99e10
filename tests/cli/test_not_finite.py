"""What the commands do where a network gives NaN or infinity: one sentence, status 2, and what was finished stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mobileo_mlx.models.sana_prepared import PreparedSana

SENTENCE = "holds NaN or infinity; get the model again."


def spoilt(model: Path, folder: Path, component: str, name: str) -> Path:
    shutil.copytree(model, folder)
    weights: Any = dict(mx.load(str(folder / f"{component}.safetensors")))
    weights[name] = weights[name] * float("nan")
    mx.save_safetensors(str(folder / f"{component}.safetensors"), weights)
    return folder


@pytest.fixture
def no_pictures(tiny_model: Path, tmp_path: Path) -> Path:
    return spoilt(tiny_model, tmp_path / "no-pictures", "dit", "proj_out.weight")


def test_one_sentence_and_status_2(refused, tiny_model: Path, tmp_path: Path, photo: Path, no_pictures: Path) -> None:
    no_answers = spoilt(tiny_model, tmp_path / "no-answers", "lm_head", "weight")
    for component, arguments in (
        ("dit", ("generate", "a red star", "-m", no_pictures, "--steps", 20)),
        ("dit", ("edit", photo, "make it blue", "-m", no_pictures)),
        ("dit", ("convert", no_pictures, "made")),
        ("lm_head", ("ask", photo, "what is it?", "-m", no_answers)),
    ):
        sentence = refused(*arguments)
        assert sentence.startswith(f"mobileo-mlx: error: {component} ")
        assert SENTENCE in sentence


def test_options_are_named(refused, tiny_model: Path) -> None:
    draw = ("generate", "a red star", "-m", tiny_model, "--steps", 8)
    for options in (("--guidance-scale", "1e37"), ("--guidance-scale", "1e10", "--dtype", "float16")):
        assert "guidance scale" in refused(*draw, *options)
    sentence = "error: guidance scale is too large; choose one nearer to 1.5."
    assert sentence in refused(*draw, "--guidance-scale", "1e300")
    sentence = "error: flow shift is too large; choose a number above 0, such as 3."
    assert sentence in refused(*draw, "--flow-shift", "1e39")
    assert "flow shift 1e+18 leaves no distance" in refused(*draw, "--flow-shift", "1e18")


def test_images_that_were_finished_stay(here, work: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of three drawings fails at its second step."""
    calls: list[int] = []
    step = PreparedSana.__call__

    def failing(self: PreparedSana, *arguments: Any, **options: Any) -> mx.array:
        calls.append(1)
        velocity = step(self, *arguments, **options)
        return velocity * float("nan") if len(calls) == 6 else velocity

    monkeypatch.setattr(PreparedSana, "__call__", failing)
    previews = ("--previews", "steps")
    result = here("generate", "a star", "-m", tiny_model, "--steps", 2, "--seed", 1, "-n", 3, "-o", "a.png", *previews)
    assert result.status == 2
    assert len(result.lines) == 2
    assert "error: dit in " in result.err
    assert len(calls) == 6
    assert all(Path(line).is_file() for line in result.lines)
    assert len(list(work.glob("*.png"))) == 2
    assert len([path for path in (work / "steps").iterdir() if "-step-" in path.name]) == 5


def test_a_preview_that_is_not_finite(refused, tiny_model: Path, tmp_path: Path) -> None:
    folder = spoilt(tiny_model, tmp_path / "spoilt", "vae_decoder", "conv_in.weight")
    sentence = refused("generate", "a star", "-m", folder, "--steps", 2, "--previews", "steps")
    assert sentence.startswith("mobileo-mlx: error: vae_decoder ")


def test_a_chat_goes_on(here, no_pictures: Path, photo: Path, tiny_model: Path) -> None:
    lines = ("What is this?", "/generate a red star", "And why?", f"/image {photo}", "/edit make it blue", "And now?")
    typed = "\n".join(lines).encode()
    result = here("chat", "-m", no_pictures, "--max-tokens", 4, stdin=typed)
    assert result.status == 0
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all(line.startswith("error: dit ") and line.endswith(SENTENCE) for line in errors)
    without = "\n".join(line for line in lines if not line.startswith(("/generate", "/edit"))).encode()
    assert result.out == here("chat", "-m", tiny_model, "--max-tokens", 4, stdin=without).out


def test_a_chat_whose_answers_are_not_finite(here, tiny_model: Path, tmp_path: Path) -> None:
    folder = spoilt(tiny_model, tmp_path / "spoilt", "llm", "layers.0.mlp.up_proj.weight")
    result = here("chat", "-m", folder, stdin=b"What is this?\n/save said.json\nAnd why?\n/help\n")
    assert result.status == 0
    assert result.err.count("error: llm ") == 2
    assert "/generate PROMPT" in result.out
    assert Path("said.json").read_text() == "[]\n"
