"""The commands about checkpoints: convert, info, random-model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mobileo_mlx.checkpoints.convert import describe
from mobileo_mlx.models.mobileo import COMPONENTS

from .test_generate import pixels


def test_random_model(here) -> None:
    assert here("random-model", "model").lines == ["model"]
    assert describe("model").tokenizer
    assert here("random-model", "same").status == here("random-model", "other", "--seed", 1).status == 0
    dit = [Path(folder, "dit.safetensors").read_bytes() for folder in ("model", "same", "other")]
    assert dit[0] == dit[1] != dit[2]


def test_convert_keeps_the_model(here, tiny_model: Path) -> None:
    result = here("convert", tiny_model, "copy")
    assert (result.status, result.lines, result.err) == (0, ["copy"], "")
    for model in (tiny_model, "copy"):
        here("generate", "a cat", "-m", model, "--steps", 1, "--seed", 1, "-o", f"{Path(model).name}.png")
    assert pixels("copy.png") == pixels("tiny.png")


def test_convert_from_upstream(here, reference: Path) -> None:
    result = here("convert", reference / "tiny" / "checkpoint", "ours")
    assert result.lines == ["ours"]
    assert "no tokenizer" in result.err
    assert describe("ours").layout == "mobileo-mlx"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_convert_to_another_precision(here, tiny_model: Path, dtype: str) -> None:
    assert here("convert", tiny_model, "low", "--dtype", dtype).status == 0
    assert {part.dtype for part in describe("low").components} == {dtype}


def test_convert_parts_to_other_precisions(here, tiny_model: Path) -> None:
    assert here("convert", tiny_model, "mixed", "--dtype", "all=float16,vae=bfloat16").status == 0
    found = {part.name: part.dtype for part in describe("mixed").components}
    assert {name for name, dtype in found.items() if dtype == "bfloat16"} == {"vae_encoder", "vae_decoder"}
    assert set(found.values()) == {"float16", "bfloat16"}


def test_convert_quantized_equals_quantizing_while_loading(here, tiny_model: Path) -> None:
    assert here("convert", tiny_model, "small", "--quantize", "llm=4,dit=8").status == 0
    bits = {part.name: part.bits for part in describe("small").components if part.bits}
    assert bits == {"llm": 4, "dit": 8}
    options = ["--steps", 1, "--seed", 1]
    assert here("generate", "a cat", "-m", "small", *options, "-o", "a.png").status == 0
    assert here("generate", "a cat", "-m", tiny_model, "--quantize", "llm=4,dit=8", *options, "-o", "b.png").status == 0
    assert pixels("a.png") == pixels("b.png")


def test_info(here, tiny_model: Path) -> None:
    found = describe(tiny_model)
    header, rule, *rows, total = here("info", tiny_model).lines
    assert header.split() == ["component", "parameters", "precision", "size"]
    assert set(rule) == {"-", " "}
    assert [row.split()[0] for row in rows] == list(COMPONENTS)
    for row, part in zip(rows, found.components, strict=True):
        assert re.fullmatch(rf"{part.name} +{part.parameters:,}  float32 +[\d.]+ [kM]B", row)
    assert total.split()[:2] == ["total", f"{found.parameters:,}"]


def test_info_of_a_quantized_model(here, tiny_model: Path) -> None:
    here("convert", tiny_model, "small", "--quantize", "llm=4")
    row = next(line for line in here("info", "small").lines if line.startswith("llm"))
    assert "4 bits, else float32" in row


def test_info_as_json(here, tiny_model: Path) -> None:
    found = describe(tiny_model)
    printed = json.loads(here("info", tiny_model, "--json").out)
    assert printed["name"] == str(tiny_model)
    assert (printed["parameters"], printed["nbytes"]) == (found.parameters, found.nbytes)
    assert [part["name"] for part in printed["components"]] == list(COMPONENTS)


def test_existing_folder_is_left_alone(refused, work: Path, tiny_model: Path) -> None:
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("precious")
    for arguments in (["random-model", "mine"], ["convert", tiny_model, "mine"]):
        assert "'mine' exists already" in refused(*arguments)
    assert (work / "mine" / "thesis.txt").read_text() == "precious"


def test_what_cannot_be_converted(here, refused, work: Path, tiny_model: Path) -> None:
    assert "int4" in refused("convert", tiny_model, "new", "--dtype", "int4")
    assert "llm=5000" in refused("convert", tiny_model, "new", "--quantize", "llm=5000")
    assert "'lm'" in refused("convert", tiny_model, "new", "--quantize", "lm=4")
    assert "llm:4" in refused("convert", tiny_model, "new", "--quantize", "llm:4")
    here("convert", tiny_model, "small", "--quantize", "llm=4")
    assert "again" in refused("convert", "small", "smaller", "--quantize", "llm=2")
