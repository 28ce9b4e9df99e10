"""Back to the original's layout, key for key.

`tests/upstream.py` writes that layout by hand, without the library's own change of names and shapes.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import mlx.core as mx
import mobileo_weights
import pytest
from random_adapter import write_random_adapter
from upstream import upstream_tensors, write_upstream

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, fuse
from mobileo_mlx.checkpoints.export import export
from mobileo_mlx.checkpoints.export_upstream import UPSTREAM
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.checkpoints.tensor_files import read_headers, read_tensors
from mobileo_mlx.errors import OptionError
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig
from mobileo_mlx.training.lora import LoRAConfig

HEAD = "model.vision_tower.vision_tower.model.head.proj"


def tensors(folder: Path) -> dict[str, mx.array]:
    return read_tensors(read_headers(folder))


def assert_equal(found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert mx.array_equal(found[name], array), name


def assert_read_alike(a: Path, b: Path) -> None:
    one, other = Checkpoint.open(a), Checkpoint.open(b)
    assert one.config == other.config
    for component in COMPONENTS:
        left, right = (named_parameters(load_component(c, component, dtype=mx.float32)) for c in (one, other))
        assert_equal(left, right)


def test_ours_becomes_theirs(tiny_model, tmp_path):
    made = export(tmp_path / "made", "upstream", model=tiny_model)
    expected = upstream_tensors(tiny_model)
    found = tensors(made.path)
    # The classifier, which nothing uses, has the width of the published one; that of the test's writer is another.
    assert found.pop(HEAD).shape == (256, 768)
    expected.pop(HEAD)
    assert_equal(found, expected)
    assert Checkpoint.open(made.path).layout == "upstream"
    assert_read_alike(made.path, tiny_model)
    published = mobileo_weights.upstream_config("0.5B")
    assert json.loads((made.path / "config.json").read_text()).keys() == published.keys()


def test_theirs_stays_as_it_is(tiny_model, tmp_path):
    """Keys, shapes, values, dtypes and configuration, what nothing uses included."""

    def mix(written):
        written[HEAD] = mx.random.normal(written[HEAD].shape, key=mx.random.key(0))
        for name, array in written.items():
            if name.startswith("model.dit.") or name.endswith("fc1.weight"):
                written[name] = array.astype(mx.bfloat16)
            if name.endswith("num_batches_tracked"):
                written[name] = mx.array(7, mx.int64)

    theirs = write_upstream(tmp_path / "theirs", tiny_model, files=2, change=mix, config={"vocab_size": 400})
    made = export(tmp_path / "made", "upstream", model=theirs)
    assert_equal(tensors(made.path), tensors(theirs))
    assert {tensors(made.path)[HEAD].dtype} == {mx.float32}
    for name in ("config.json", "diffusion/transformer/config.json", "diffusion/scheduler/scheduler_config.json"):
        assert json.loads((made.path / name).read_text()) == json.loads((theirs / name).read_text())
    assert_read_alike(made.path, theirs)
    # Configurations that lie beside the model's folder come with it.
    inside = tmp_path / "run" / "final"
    inside.parent.mkdir()
    shutil.copytree(theirs, inside)
    shutil.move(inside / "diffusion", inside.parent / "diffusion")
    again = export(tmp_path / "again", "upstream", model=inside)
    assert (again.path / "diffusion" / "vae" / "config.json").is_file()
    assert_read_alike(again.path, theirs)


def test_there_and_back(tiny_model, tmp_path):
    """Theirs to ours, and back: all that anything uses."""
    theirs = write_upstream(tmp_path / "theirs", tiny_model)
    convert(theirs, tmp_path / "ours")
    made = export(tmp_path / "made", "upstream", model=tmp_path / "ours")
    found, expected = tensors(made.path), tensors(theirs)
    del found[HEAD], expected[HEAD]
    assert_equal(found, expected)


def test_shards(tiny_model, tmp_path):
    made = export(tmp_path / "made", "upstream", model=tiny_model, shard_bytes=2_000_000)
    shards = sorted(path.name for path in made.path.glob("*.safetensors"))
    assert shards == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert all((made.path / name).stat().st_size < 2_100_000 for name in shards)
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    found = tensors(made.path)
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    assert_read_alike(made.path, tiny_model)


def test_one_tensor_at_a_time_is_in_memory(tiny_model, tmp_path):
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    made = export(tmp_path / "made", "upstream", model=tiny_model)
    assert mx.get_peak_memory() - before < made.nbytes / 4


def test_adapters_are_merged(tiny_model, tmp_path):
    write_random_adapter(tmp_path / "adapter", tiny_model, LoRAConfig(rank=4, alpha=8, components=("llm", "dit")))
    made = export(tmp_path / "made", "upstream", model=tiny_model, adapter=tmp_path / "adapter")
    fuse(tiny_model, tmp_path / "adapter", tmp_path / "fused")
    assert_read_alike(made.path, tmp_path / "fused")


def test_what_is_quantized_is_dequantized_when_asked_for(tiny_model, tmp_path):
    convert(tiny_model, tmp_path / "small", quantize={"all": 8})
    with pytest.raises(OptionError, match="--bits 16"):
        export(tmp_path / "made", "upstream", model=tmp_path / "small")
    made = export(tmp_path / "made", "upstream", model=tmp_path / "small", bits=16)
    assert "| weights | float32, dequantized from 8 bits |" in (made.path / "README.md").read_text()
    found, expected = tensors(made.path), upstream_tensors(tiny_model)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        if name != HEAD and mx.issubdtype(array.dtype, mx.floating):
            assert array.shape == expected[name].shape
            # A step between 256 levels of a group is at most its range / 127.
            assert mx.abs(array - expected[name]).max() <= 2 / 127 * mx.abs(expected[name]).max() + 1e-6, name


def test_a_tied_model_has_no_head(tiny_model, tmp_path):
    theirs = write_upstream(tmp_path / "theirs", tiny_model, change=lambda t: t.pop("lm_head.weight"))
    assert "lm_head.weight" not in tensors(export(tmp_path / "made", "upstream", model=theirs).path)
    convert(theirs, tmp_path / "ours")
    again = export(tmp_path / "again", "upstream", model=tmp_path / "ours")
    assert json.loads((again.path / "config.json").read_text())["tie_word_embeddings"] is True
    assert Checkpoint.open(again.path).tied


@pytest.mark.parametrize("size", mobileo_weights.SIZES)
def test_the_published_configurations_come_back(size, tiny_model):
    """From our description of a published model: every field as published, and no configuration of diffusers."""
    published = mobileo_weights.upstream_config(size)
    config = MobileOConfig.from_upstream(published, mobileo_weights.manifest(size))
    tiny = Checkpoint.open(tiny_model)
    source = dataclasses.replace(tiny, name=size, config=config, tied=False)
    files = UPSTREAM.files(source, None, {})
    stored = {"dtype": "float32"}  # of the small model's tensors, which stand for those that are not here
    assert files == {"config.json": published | stored}


def test_what_upstream_has_no_place_for(tmp_path):
    with pytest.raises(
        OptionError, match=r"no place for its vision_tower.down_strides, which .*; choose app or mlx-lm"
    ):
        export(tmp_path / "made", "upstream", model="tiny")
    assert not list(tmp_path.iterdir())


def test_the_reference_checkpoint(reference, tmp_path):
    """What PyTorch's code of the original wrote."""
    source = reference / "tiny" / "checkpoint"
    made = export(tmp_path / "made", "upstream", model=source)
    assert_equal(tensors(made.path), tensors(source))
    convert(source, tmp_path / "ours")
    back = tensors(export(tmp_path / "back", "upstream", model=tmp_path / "ours").path)
    original = tensors(source)
    unused = {name for name in original if name.endswith(("num_batches_tracked", "head.proj"))}
    assert back.keys() >= original.keys() - unused
    assert_equal({n: back[n] for n in original.keys() - unused}, {n: original[n] for n in original.keys() - unused})
