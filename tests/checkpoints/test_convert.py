import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from upstream import write_upstream

import mobileo_mlx.checkpoints.convert as convert_module
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert, describe
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.errors import CheckpointError, OptionError, OutputError
from mobileo_mlx.models.mobileo import COMPONENTS


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "model"
    write_random_model(folder)
    return folder


def parameters(folder: Path, component: str, dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    return dict(tree_flatten(load_component(Checkpoint.open(folder), component, dtype=dtype).parameters()))


def assert_same(a: Path, b: Path) -> None:
    for component in COMPONENTS:
        left, right = parameters(a, component), parameters(b, component)
        assert left.keys() == right.keys()
        assert all(mx.array_equal(left[name], right[name]) for name in left)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_upstreams_layout_becomes_ours(ours, tmp_path):
    theirs = write_upstream(tmp_path / "theirs", ours, files=2)
    seen: list[str] = []
    info = convert(theirs, tmp_path / "made", progress=seen.append)
    assert tuple(seen) == COMPONENTS
    files = sorted(["config.json", "tokenizer.json", *(f"{name}.safetensors" for name in COMPONENTS)])
    assert listing(tmp_path / "made") == files
    assert_same(tmp_path / "made", ours)
    assert Checkpoint.open(tmp_path / "made").config == Checkpoint.open(ours).config
    assert Checkpoint.open(tmp_path / "made").load_tokenizer().vocab_size == 406
    assert info == describe(tmp_path / "made")


def test_stored_values_are_kept_unless_a_dtype_is_named(ours, tmp_path):
    def halve(tensors):
        tensors.update({k: v.astype(mx.bfloat16) for k, v in tensors.items() if v.dtype == mx.float32})

    theirs = write_upstream(tmp_path / "theirs", ours, change=halve)
    kept, wider = convert(theirs, tmp_path / "kept"), convert(theirs, tmp_path / "wider", dtype="float32")
    assert {component.dtype for component in kept.components} == {"bfloat16"}
    assert {component.dtype for component in wider.components} == {"float32"}
    assert 1.9 * kept.nbytes < wider.nbytes < 2.1 * kept.nbytes
    assert_same(tmp_path / "kept", tmp_path / "wider")


def test_our_layout_can_be_converted_again(ours, tmp_path):
    convert(ours, tmp_path / "half", dtype="float16")
    info = convert(tmp_path / "half", tmp_path / "quantized", quantize={"llm": 4, "vae": 8})
    bits = {component.name: component.bits for component in info.components}
    assert bits == {**dict.fromkeys(COMPONENTS), "llm": 4, "vae_encoder": 8, "vae_decoder": 8}
    # What is quantized stays so, and can change the dtype of its scales, but can't be quantized twice.
    again = convert(tmp_path / "quantized", tmp_path / "again", dtype="float32", quantize={"dit": 4})
    assert {c.name: c.bits for c in again.components} == {**bits, "dit": 4}
    assert {c.dtype for c in again.components} == {"float32"}
    assert_same_without_dit(tmp_path / "quantized", tmp_path / "again")
    with pytest.raises(OptionError, match=r"llm, vae_decoder, vae_encoder of .* can't be quantized again"):
        convert(tmp_path / "quantized", tmp_path / "twice", quantize={"all": 4})
    assert not (tmp_path / "twice").exists()


def assert_same_without_dit(a: Path, b: Path) -> None:
    for component in COMPONENTS:
        if component != "dit":
            left, right = parameters(a, component), parameters(b, component)
            assert all(mx.array_equal(left[name], right[name]) for name in left)


def test_a_model_without_tokenizer_or_lm_head(ours, tmp_path):
    theirs = write_upstream(tmp_path / "theirs", ours, change=lambda t: t.pop("lm_head.weight"))
    (theirs / "tokenizer.json").unlink()
    info = convert(theirs, tmp_path / "made", quantize={"all": 4})
    assert info.tied
    assert not info.tokenizer
    assert not {"lm_head.safetensors", "tokenizer.json"} & set(listing(tmp_path / "made"))
    assert "lm_head" not in Checkpoint.open(tmp_path / "made").quantization
    with pytest.raises(CheckpointError, match="tokenizer"):
        Checkpoint.open(tmp_path / "made").load_tokenizer()


def test_bad_requests_leave_nothing(ours, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        convert(ours, tmp_path / "full")
    with pytest.raises(OptionError, match="'int4' is unknown"):
        convert(ours, tmp_path / "new", dtype="int4")
    with pytest.raises(OptionError, match="no component 'unet'"):
        convert(ours, tmp_path / "new", quantize={"unet": 4})
    with pytest.raises(CheckpointError, match="no folder"):
        convert(str(tmp_path / "missing"), tmp_path / "new")
    assert listing(tmp_path) == ["full"]
    assert listing(tmp_path / "full") == ["precious"]


def test_a_source_that_does_not_fit_leaves_nothing(ours, tmp_path):
    theirs = write_upstream(tmp_path / "theirs", ours, change=lambda t: t.pop("model.vae.decoder.conv_out.bias"))
    with pytest.raises(CheckpointError, match=r"missing are vae_decoder\.conv_out\.bias"):
        convert(theirs, tmp_path / "made")
    assert listing(tmp_path) == ["theirs"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), pytest.raises(OutputError, match="disk is full")),
        (KeyboardInterrupt(), pytest.raises(KeyboardInterrupt)),
    ],
)
def test_what_is_broken_off_leaves_nothing(ours, tmp_path, monkeypatch, error, expected):
    write = convert_module.write_tensors

    def write_some(path, tensors, **options):
        if path.name == "dit.safetensors":
            path.write_bytes(b"half")
            raise error
        return write(path, tensors, **options)

    monkeypatch.setattr(convert_module, "write_tensors", write_some)
    with expected:
        convert(ours, tmp_path / "made")
    assert listing(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits are a matter of POSIX")
def test_a_write_that_the_system_refuses(ours, tmp_path):
    """A real failure of the operating system, here at a limit for the size of files."""
    code = f"""
import resource, signal
from mobileo_mlx.checkpoints.convert import convert
from mobileo_mlx.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    convert({str(ours)!r}, {str(tmp_path / "made")!r})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "made' can't be written (File too large)" in done.stdout
    assert listing(tmp_path) == []


def test_a_model_is_described(ours, tmp_path):
    info = describe(ours)
    assert (info.name, info.path, info.layout) == (str(ours), ours, "mobileo-mlx")
    assert (info.tied, info.tokenizer, info.image_size, info.default_size) == (False, True, 128, (128, 128))
    counted = {name: sum(a.size for a in parameters(ours, name).values()) for name in COMPONENTS}
    assert {component.name: component.parameters for component in info.components} == counted
    assert info.parameters == sum(counted.values())
    assert info.nbytes == 4 * info.parameters  # all is float32
    assert info.nbytes < sum(path.stat().st_size for path in ours.iterdir())
    # Quantized or not, it is as many weights; upstream's layout has one more tensor, which is never used.
    quantized = convert(ours, tmp_path / "quantized", quantize={"all": 5})
    assert quantized.parameters == info.parameters
    assert quantized.nbytes < 0.6 * info.nbytes
    theirs = describe(Checkpoint.open(write_upstream(tmp_path / "theirs", ours)))
    assert (theirs.layout, theirs.parameters) == ("upstream", info.parameters + 256 * 24)


def test_the_reference_checkpoint_converts(reference, tmp_path):
    source = reference / "tiny" / "checkpoint"
    info = convert(source, tmp_path / "made")
    assert not info.tokenizer
    assert_same(source, tmp_path / "made")
    assert Checkpoint.open(source).config == Checkpoint.open(tmp_path / "made").config


def test_the_config_alone_says_what_a_download_must_bring(ours):
    config = json.loads((ours / "config.json").read_text())
    assert tuple(config["components"]) == COMPONENTS
    assert (config["format"], config["format_version"]) == ("mobileo-mlx", 1)


def test_a_part_of_a_model_converts(ours, tmp_path):
    part = Path(shutil.copytree(ours, tmp_path / "part"))
    (part / "vae_encoder.safetensors").unlink()
    info = convert(part, tmp_path / "made")
    assert [c.name for c in info.components] == [name for name in COMPONENTS if name != "vae_encoder"]
