"""What other programs read: --json, --progress json, capabilities, info of an image, completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from mobileo_cli import printing
from mobileo_cli.commands import program
from PIL import Image

from mobileo_mlx.generation_options import GenerationOptions
from mobileo_mlx.options import declared

DRAW = ("generate", "a cat", "--steps", 1, "--seed", 3)


@pytest.fixture(autouse=True)
def _usual_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "progress_mode", "auto")  # each command sets it for its whole process


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_drawings(here, tiny_model: Path) -> None:
    done = here(*DRAW, "-n", 2, "-m", tiny_model, "-o", "a cät.png", "--json")
    assert done.out.isascii()
    first, second = json.loads(done.out)["images"]
    assert [first["path"], second["path"]] == ["a cät.png", "a cät-1.png"]
    assert [first["seed"], second["seed"]] == [3, 4]
    assert (first["width"], first["height"]) == Image.open("a cät.png").size
    assert set(first["seconds"]) == {"encode", "denoise", "decode"}
    assert first["settings"] == json.loads(here("info", "a cät.png", "--json").out)


def test_an_edit(here, tiny_model: Path, photo: Path) -> None:
    done = here("edit", photo, "red", "--steps", 1, "-m", tiny_model, "-o", "a.png", "--json", "--no-metadata")
    (image,) = json.loads(done.out)["images"]
    assert image["settings"]["image"] == photo.name


def test_json_and_an_image_are_not_written_to_one_stream(here, tiny_model: Path) -> None:
    done = here(*DRAW, "-m", tiny_model, "-o", "-", "--json")
    assert (done.status, done.out) == (2, "")
    assert "--json and --output - both write to standard output" in done.err


def test_an_answer(here, tiny_model: Path, photo: Path) -> None:
    ask = ("ask", photo, "what?", "-m", tiny_model, "--max-tokens", 4)
    found = json.loads(here(*ask, "--json").out)
    assert printing.visible(found["text"]) == here(*ask).out.strip()
    assert len(found["tokens"]) == 4
    assert found["finish_reason"] == "length"


@pytest.mark.parametrize("command", [("convert", "model", "copy"), ("random-model", "other")])
def test_written_models(here, command: tuple[str, ...]) -> None:
    here("random-model", "model")
    found = json.loads(here(*command, "--json").out)
    assert found == json.loads(here("info", command[-1], "--json").out)
    assert found["path"] == command[-1] or found["path"].endswith(f"/{command[-1]}")


def test_finetuning_and_fusing(here, tiny_model: Path, photo: Path) -> None:
    line = {"prompt": "a cat", "image": str(photo), "question": "what?", "answer": "a cat"}
    Path("data.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    finetune = ("finetune", "--quadruplets", "data.jsonl", "--model", tiny_model, "--steps", 2, "--batch-size", 1)
    plan = json.loads(here(*finetune, "--dry-run", "--json").out)
    assert (plan["samples"], plan["questions"], plan["steps"]) == (1, 1, 2)
    assert "a cat" in plan["previews"][0]["text"]
    done = here(*finetune, "--out", "run", "--json", "--progress", "json")
    found = json.loads(done.out)
    assert (found["adapter"], found["step"], found["steps"]) == ("run", 2, 2)
    assert Path(found["samples"]).is_file()
    steps = [event for event in objects(done.err) if event["event"] == "step" and event["label"] == "training"]
    assert [(event["done"], event["total"]) for event in steps] == [(1, 2), (2, 2)]
    assert steps[-1]["loss"] == found["loss"]
    assert json.loads(here("fuse", tiny_model, "run", "fused", "--json").out)["layout"] == "mobileo-mlx"


def test_a_mistake_is_a_sentence_and_no_json(here) -> None:
    done = here("info", "nowhere/model", "--json")
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)


def test_progress_as_json(here, tiny_model: Path) -> None:
    done = here(*DRAW, "-m", tiny_model, "-o", "a.png", "--progress", "json")
    assert done.lines == ["a.png"]
    events = objects(done.err)
    assert {"event": "step", "done": 1, "total": 1, "label": "image 1/1, seed 3"} in events
    assert events[-1]["event"] == "note"
    (error,) = objects(here("generate", "a cat", "--size", "7", "--progress", "json").err)
    assert error["event"] == "error"
    assert error["message"].startswith("--size 7: write WIDTHxHEIGHT")
    assert "--progress loud: choose one of auto, json, none" in here("info", "tiny", "--progress", "loud").err


def test_info_of_an_image(here, tiny_model: Path) -> None:
    here("generate", "a cat,\n\x1b[31mred", "--steps", 1, "-m", tiny_model, "-o", "a.webp")
    lines = dict(line.split(maxsplit=1) for line in here("info", "a.webp").lines)
    assert (lines["task"], lines["steps"], lines["prompt"]) == ("generate", "1", "a cat, \\x1b[31mred")
    Image.new("RGB", (2, 2)).save("plain.png")
    assert "'plain.png' does not say how it was made" in here("info", "plain.png").err


def test_capabilities(here) -> None:
    found = json.loads(here("capabilities").out)
    assert json.loads(here("capabilities", "--json").out) == found
    options = {option["name"]: option for option in found["tasks"]["generate"]}
    assert set(options) == {name for name, option in declared(GenerationOptions).items() if option.kind} - {"preset"}
    assert options["steps"]["minimum"] == 1
    assert options["scheduler"]["choices"] == ["dpm++", "dpm++3", "euler"]
    assert options["flow_shift"]["exclusive_minimum"] == 0
    assert options["seed"]["repeatable"]
    assert "strength" in {option["name"] for option in found["tasks"]["edit"]}
    assert "max_tokens" in {option["name"] for option in found["tasks"]["answer"]}
    assert {"small", "balanced", "full"} == set(found["precisions"])
    assert found["image_formats"] == ["PNG", "JPEG", "WEBP"]
    commands = typer.main.get_command(program).commands  # type: ignore[attr-defined]
    assert set(found["commands"]) == set(commands)
    flags = [flag for option in found["commands"]["generate"]["options"] for flag in option["flags"]]
    assert {"--steps", "--json", "--progress", "--keep-loaded", "--staged"} <= set(flags)
    assert "--preset" not in flags


@pytest.mark.parametrize(
    ("words", "expected"), [("mobileo-mlx gen", "generate"), ("mobileo-mlx ask --max", "--max-tokens")]
)
def test_completion(command, words: str, expected: str) -> None:
    count = str(len(words.split()) - 1)
    done = command(_MOBILEO_MLX_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert done.stdout.split() == [expected]
    for shell in ("bash", "zsh", "fish"):
        assert "_MOBILEO_MLX_COMPLETE" in command(_MOBILEO_MLX_COMPLETE=f"source_{shell}").stdout
