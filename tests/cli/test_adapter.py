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


# Several


@pytest.fixture(scope="module")
def second(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another adapter of the DiT."""
    folder = tmp_path_factory.mktemp("adapters") / "second"
    write_random_adapter(folder, tiny_model, LoRAConfig(rank=2, alpha=4, components=("dit",)))
    return folder


def test_several_adapters(draw, here, adapter: Path, second: Path) -> None:
    both = ("--adapter", adapter, "--adapter", second)
    drawn = draw("both.png", *both, "--adapter-scale", 0.5, "--adapter-scale", 2)
    singles = {draw("a.png", "--adapter", adapter, "--adapter-scale", 0.5), draw("b.png", "--adapter", second)}
    assert len({drawn, draw("one.png", *both), *singles}) == 4
    assert draw("other.png", *both, "--adapter-scale", 0.5) == draw(
        "same.png", *both, "--adapter-scale", 0.5, "--adapter-scale", 0.5
    )
    metadata = read_metadata("both.png")
    assert (metadata["adapter"], metadata["adapter_scale"]) == ([str(adapter), str(second)], [0.5, 2])
    again = here("generate", "--from-image", "both.png", "-o", "again.png")
    assert again.status == 0
    assert f"and the adapter '{adapter}' and the adapter '{second}'." in again.err
    assert pixels("again.png") == drawn
    assert here("generate", "--from-image", "both.png", "--adapter-scale", 1, "-o", "strong.png").status == 0
    assert pixels("strong.png") == pixels("one.png")
    assert here("generate", "--from-image", "both.png", "--adapter", second, "-o", "less.png").status == 0
    assert pixels("less.png") == pixels("b.png")
    assert here("generate", "--from-image", "both.png", "--adapter", "", "-o", "none.png").status == 0
    assert pixels("none.png") == draw("plain.png")


def test_an_adapter_that_is_missing_beside_one_that_is_not(refused: Refused, tiny_model: Path, adapter: Path) -> None:
    for names in ((adapter, "/does/not/exist"), ("/does/not/exist", adapter)):
        arguments = [argument for name in names for argument in ("--adapter", name)]
        assert "'/does/not/exist' holds no adapter" in refused("generate", "a cat", "-m", tiny_model, *arguments)


def test_more_scales_than_adapters(refused: Refused, tiny_model: Path, adapter: Path, second: Path) -> None:
    scales = [x for scale in (1, 2, 3) for x in ("--adapter-scale", scale)]
    arguments = ["generate", "a cat", "-m", tiny_model, "--adapter", adapter]
    assert "there are 3 scales for 1 adapter; give one for all, or one for each" in refused(*arguments, *scales)
    assert "there are 3 scales for 2 adapters" in refused(*arguments, "--adapter", second, *scales)


def test_a_picture_that_names_an_adapter_on_the_hub(draw, here, monkeypatch, tmp_path: Path) -> None:
    """It may be anybody's picture."""
    from huggingface_hub import constants

    from mobileo_mlx.images import load_image, save_png

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    draw("plain.png")
    for adapters in ("somebody/evil", ["somebody/evil@main", "a/b"]):
        metadata = read_metadata("plain.png") | {"adapter": adapters, "adapter_scale": 1.0}
        save_png(load_image("plain.png"), "foreign.png", metadata, overwrite=True)
        result = here("generate", "--from-image", "foreign.png", "-o", "again.png")
        assert result.status == 2
        again = "--adapter somebody/evil@main --adapter a/b" if "a/b" in adapters else "--adapter somebody/evil"
        assert f"which is not on this machine: give {again} to download it." in result.err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("adapters", [[3], [{}], [["a"]], [None]])
def test_metadata_whose_adapters_are_none(draw, here, adapters: list[object]) -> None:
    from mobileo_mlx.images import load_image, save_png

    draw("plain.png")
    metadata = read_metadata("plain.png") | {"adapter": adapters, "adapter_scale": [1.0]}
    save_png(load_image("plain.png"), "odd.png", metadata, overwrite=True)
    result = here("generate", "--from-image", "odd.png", "-o", "again.png")
    assert result.status == 2
    assert "has no valid adapter" in result.err


def test_a_file_beside_the_adapter_that_is_not_read(here, work: Path, tiny_model: Path, photo: Path, adapter: Path):
    shutil.copytree(adapter, work / "llava")
    (work / "llava" / "non_lora_trainables.bin").write_bytes(b"a pickle")
    note = "note: non_lora_trainables.bin in"
    result = here("ask", photo, "What?", "-m", tiny_model, "--max-tokens", 1, "--adapter", "llava")
    assert (result.status, result.err.count(note)) == (0, 1)
    result = here("fuse", tiny_model, "llava", "fused")
    assert (result.status, result.err.count(note)) == (0, 1)


# fuse


def test_several_are_fused(draw, here, tiny_model: Path, adapter: Path, second: Path) -> None:
    scales = ("--adapter-scale", 0.5, "--adapter-scale", 2)
    assert here("fuse", tiny_model, adapter, second, "fused", *scales).status == 0
    expected = draw("adapted.png", "--adapter", adapter, "--adapter", second, *scales)
    assert draw("fused.png", "-m", "fused") == expected


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
