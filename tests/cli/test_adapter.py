"""`--adapter` of generate, edit, ask and chat, and the command `fuse`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from random_adapter import write_random_adapter

from mobileo_mlx.checkpoints.adapters import CONFIG_FILE, WEIGHTS_FILE
from mobileo_mlx.checkpoints.convert import convert, describe
from mobileo_mlx.images import read_metadata
from mobileo_mlx.training.lora import LoRAConfig

from .conftest import Run
from .test_generate import pixels
from .test_main import modules_after

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of all that drawing and answering depend on."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    config = LoRAConfig(rank=4, alpha=8, components=("llm", "dit"))
    write_random_adapter(folder, tiny_model, config, full=("mm_projector",))
    return folder


@pytest.fixture
def draw(here, tiny_model: Path):
    """Draws one image with the small model and two steps, and returns its pixels."""

    def run(name: str, *arguments: object) -> bytes:
        result = here("generate", "a cat", "-m", tiny_model, "--steps", 2, "--seed", 1, "-o", name, *arguments)
        assert (result.status, result.lines) == (0, [name]), result.err
        return pixels(name)

    return run


def test_drawing_with_an_adapter(draw, adapter: Path) -> None:
    plain = draw("plain.png")
    assert draw("adapted.png", "--adapter", adapter) != plain
    assert draw("none.png", "--adapter", adapter, "--adapter-scale", 0) == plain
    half = draw("half.png", "--adapter", adapter, "--adapter-scale", 0.5)
    assert half not in (plain, pixels("adapted.png"))


def test_an_image_tells_its_adapter(draw, here, adapter: Path) -> None:
    draw("adapted.png", "--adapter", adapter, "--adapter-scale", 0.5)
    metadata = read_metadata("adapted.png")
    assert (metadata["adapter"], metadata["adapter_scale"]) == (str(adapter), 0.5)
    assert here("generate", "--from-image", "adapted.png", "-o", "again.png").status == 0
    assert pixels("again.png") == pixels("adapted.png")


def test_a_replay_without_the_adapter_or_with_another_scale(draw, here, adapter: Path) -> None:
    draw("adapted.png", "--adapter", adapter, "--adapter-scale", 0.5)
    assert here("generate", "--from-image", "adapted.png", "--adapter", "", "-o", "plain.png").status == 0
    assert pixels("plain.png") == draw("expected.png")
    assert "adapter" not in read_metadata("plain.png")
    assert here("generate", "--from-image", "adapted.png", "--adapter", adapter, "-o", "whole.png").status == 0
    assert pixels("whole.png") == draw("expected.png", "--adapter", adapter, "--overwrite")


def test_editing_with_an_adapter(here, tiny_model: Path, photo: Path, adapter: Path) -> None:
    options = ["-m", tiny_model, "--steps", 1, "--seed", 1]
    assert here("edit", photo, "make it blue", *options, "-o", "plain.png").status == 0
    assert here("edit", photo, "make it blue", *options, "-o", "adapted.png", "--adapter", adapter).status == 0
    assert pixels("plain.png") != pixels("adapted.png")


def test_answering_with_an_adapter(here, tiny_model: Path, photo: Path, adapter: Path) -> None:
    def answer(*arguments: object) -> str:
        result = here("ask", photo, "What is this?", "-m", tiny_model, "--max-tokens", 12, *arguments)
        assert result.status == 0, result.err
        return result.out

    assert answer("--adapter", adapter) != answer()
    assert answer("--adapter", adapter, "--adapter-scale", 0) == answer() == answer("--adapter", "")


def test_chatting_with_an_adapter(here, tiny_model: Path, adapter: Path) -> None:
    def said(*arguments: object) -> list[str]:
        lines = b"What is this?\n/generate a cat\n"
        result = here("chat", "-m", tiny_model, "--max-tokens", 8, *arguments, stdin=lines)
        assert result.status == 0, result.err
        return result.lines

    plain, adapted = said(), said("--adapter", adapter, "--adapter-scale", 2)
    assert plain[0] != adapted[0]
    metadata = [read_metadata(lines[-1]) for lines in (plain, adapted)]
    assert "adapter" not in metadata[0]
    assert (metadata[1]["adapter"], metadata[1]["adapter_scale"]) == (str(adapter), 2)


def test_drawing_with_an_adapter_imports_nothing_heavy(work: Path, tiny_model: Path, adapter: Path) -> None:
    arguments = ("generate", "a cat", "-m", tiny_model, "--steps", "1", "--adapter", adapter)
    assert not modules_after(*map(str, arguments), cwd=work) & {
        "mlx_lm",
        "transformers",
        "torch",
        "mobileo_mlx.training",
    }


@pytest.mark.parametrize("bits", ["llm=4,dit=8", "all=8"])
def test_an_adapter_beside_quantized_weights(draw, adapter: Path, bits: str) -> None:
    plain = draw("plain.png", "--quantize", bits)
    assert draw("adapted.png", "--quantize", bits, "--adapter", adapter) != plain
    assert draw("none.png", "--quantize", bits, "--adapter", adapter, "--adapter-scale", 0) == plain


# fuse


def test_fused_is_the_same_as_adapted(draw, here, tiny_model: Path, adapter: Path) -> None:
    result = here("fuse", tiny_model, adapter, "fused", "--adapter-scale", 0.5)
    assert (result.status, result.lines, result.err) == (0, ["fused"], "")
    assert describe("fused").tokenizer
    assert draw("fused.png", "-m", "fused") == draw("adapted.png", "--adapter", adapter, "--adapter-scale", 0.5)


def test_fused_in_another_precision(here, tiny_model: Path, adapter: Path) -> None:
    assert here("fuse", tiny_model, adapter, "fused", "--dtype", "float16").status == 0
    assert {part.dtype for part in describe("fused").components} == {"float16"}


def test_what_cannot_be_fused(refused: Refused, work: Path, tiny_model: Path, adapter: Path) -> None:
    convert(tiny_model, work / "small", quantize={"llm": 4})
    assert "llm of" in refused("fuse", "small", adapter, "fused")
    assert "exists already" in refused("fuse", tiny_model, adapter, "small")
    assert "holds no adapter" in refused("fuse", tiny_model, "small", "fused")
    assert "int4" in refused("fuse", tiny_model, adapter, "fused", "--dtype", "int4")


def test_a_full_disk_leaves_nothing(command: Run, small_disk, tiny_model: Path, adapter: Path) -> None:
    folder = small_disk("full")
    done = command("fuse", tiny_model, adapter, folder / "fused")
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert not (folder / "fused").exists()


# Refused


def test_adapters_that_cannot_be(refused: Refused, work: Path, tiny_model: Path, adapter: Path) -> None:
    def draw(*arguments: object) -> str:
        return refused("generate", "a cat", "-m", tiny_model, *arguments)

    assert "'nowhere' holds no adapter" in draw("--adapter", "nowhere")
    assert "holds no adapter" in draw("--adapter", tiny_model)
    assert "give --adapter DIR" in draw("--adapter-scale", 2)
    assert "scale is inf" in draw("--adapter", adapter, "--adapter-scale", "inf")
    shutil.copytree(adapter, work / "odd")
    settings = json.loads((adapter / CONFIG_FILE).read_text())
    (work / "odd" / CONFIG_FILE).write_text(json.dumps(settings | {"use_qalora": True}))
    assert "use_qalora" in draw("--adapter", "odd")
    (work / "odd" / CONFIG_FILE).write_text("{")
    assert "is not JSON" in draw("--adapter", "odd")
    shutil.copytree(adapter, work / "cut")
    (work / "cut" / WEIGHTS_FILE).write_bytes((adapter / WEIGHTS_FILE).read_bytes()[:-1])
    assert "is cut short" in draw("--adapter", "cut")


@pytest.mark.parametrize("name", ["generate", "ask", "edit", "chat", "fuse"])
def test_an_adapter_for_another_model(
    refused: Refused, reference: Path, photo: Path, tiny_model: Path, name: str
) -> None:
    theirs = reference / "tiny" / "goldens" / "lora_adapter"
    options = ["-m", tiny_model, "--adapter", theirs]
    arguments = {
        "generate": ["a cat", *options],
        "ask": [photo, "What is this?", *options],
        "edit": [photo, "make it blue", *options],
        "chat": options,
        "fuse": [tiny_model, theirs, "fused"],
    }
    sentence = refused(name, *arguments[name])
    assert f"is for another model than '{tiny_model}' (it was made for 'checkpoint')" in sentence
    assert "layers.0.mlp.down_proj.lora_A.weight (16, 160) instead of (16, 128)" in sentence
