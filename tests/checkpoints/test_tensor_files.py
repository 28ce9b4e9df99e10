"""Safetensors files as others write them: whole, damaged, in shards, and of types that MLX does not have."""

import gc
import json
import math
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mobileo_mlx.checkpoints.tensor_files as tensor_files
from mobileo_mlx.checkpoints.tensor_files import (
    INDEX,
    check_dtypes,
    placeholders,
    read_header,
    read_headers,
    read_tensors,
    weight_files,
    write_tensors,
)
from mobileo_mlx.errors import CheckpointError


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes) -> dict:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


WHOLE = safetensors(entry(), bytes(16))
TWICE = json.dumps({**entry(), "b": entry(data_offsets=[16, 32])["a"]}).replace('"b"', '"a"').encode()


def test_a_header_is_read_without_the_data(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({**entry(), "__metadata__": {"format": "pt"}}, bytes(16)))
    info = read_header(path)["a"]
    assert (info.dtype, info.shape, info.nbytes, info.size, info.file) == ("F32", (2, 2), 16, 4, path)
    assert len(read_header(path)) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cut short"),
        (WHOLE[:5], "cut short"),
        (WHOLE[:20], "cut short"),
        (WHOLE[:-1], "cut short"),
        (WHOLE + b"x", "damaged"),
        (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
        (struct.pack("<Q", 200_000_000) + b"{}", "not a safetensors file"),
        (safetensors(b"not json!"), "not a safetensors file"),
        (safetensors([1, 2]), "not a safetensors file"),
        (safetensors({"a": 1}), "not a safetensors file"),
        (safetensors(entry(dtype="X99"), bytes(16)), "not a safetensors file"),
        (safetensors(entry(shape=[3, 2]), bytes(16)), "not a safetensors file"),
        (safetensors(entry(shape=[-2, -2]), bytes(16)), "not a safetensors file"),
        (safetensors(entry(shape="ab"), bytes(16)), "not a safetensors file"),
        (safetensors(entry(data_offsets=[-16, 0]), bytes(16)), "not a safetensors file"),
        (safetensors(entry(data_offsets=[100, 116]), bytes(16)), "cut short"),
        (safetensors(TWICE, bytes(32)), "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, expected):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as error:
        read_header(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_none_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors' can't be read \(No such file or directory\)"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("F64", 8), ("F32", 4), ("BF16", 2), ("U32", 4), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1)]
)
def test_the_size_of_a_tensor(tmp_path, dtype, nbytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(entry(dtype=dtype, data_offsets=[0, 4 * nbytes]), bytes(4 * nbytes)))
    assert read_header(path)["a"].nbytes == 4 * nbytes


def test_what_is_written_is_read_back_by_mlx(tmp_path):
    tensors = {
        "transposed": mx.arange(6.0).reshape(2, 3).T,
        "half": mx.arange(6).astype(mx.bfloat16).reshape(3, 2).T,
        "fp16": mx.array([1.5, -2.0], dtype=mx.float16),
        "scalar": mx.array(2.0),
        "packed": mx.array([1, 2**32 - 1], dtype=mx.uint32),
        "empty": mx.zeros((0, 3)),
        "count": mx.array(3, dtype=mx.int64),
        "step": mx.array(2**40, dtype=mx.uint64),
    }
    expected = dict(tensors)
    path = tmp_path / "x.safetensors"
    assert write_tensors(path, tensors) == path.stat().st_size
    assert not tensors
    found = mx.load(str(path))
    assert found.keys() == expected.keys() == read_header(path).keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)


def test_tensors_are_read_when_they_are_used(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": mx.zeros((1000, 1000)), "b": mx.ones((1000, 1000))})
    gc.collect()
    before = mx.get_active_memory()
    tensors = read_tensors(read_header(path))
    assert mx.get_active_memory() - before < 1000
    mx.eval(tensors["b"])
    assert 4_000_000 <= mx.get_active_memory() - before < 4_100_000


# What only one of the two parsers refuses


@pytest.mark.parametrize(
    "header",
    [
        {**entry(), "__metadata__": {"a": 1}},
        {**entry(), "__metadata__": ["a"]},
        {**entry(), "__metadata__": {"a": {"b": "c"}}},
        b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"\xff":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":["4"],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1' + b"6" * 400 + b"]}}",
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,16]}}',
        b"\xef\xbb\xbf" + json.dumps(entry()).encode(),
        b"[" * 200_000,
    ],
)
def test_a_header_that_is_odd_is_refused_before_mlx_sees_it(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(header, bytes(16)))
    with pytest.raises(CheckpointError, match=r"x\.safetensors' is cut short or damaged"):
        read_header(path)


@pytest.mark.parametrize("shape", [[0, 2**31], [0, 2**63], [1] * 9])
def test_a_shape_that_no_array_can_have_is_refused(tmp_path, shape):
    path = tmp_path / "x.safetensors"
    nbytes = 4 * (0 not in shape)
    path.write_bytes(safetensors(entry(shape=shape, data_offsets=[0, nbytes]), bytes(nbytes)))
    with pytest.raises(CheckpointError, match="a tensor a of a shape that no array can have"):
        read_header(path)


@pytest.mark.parametrize("dtype", ["I8", "X9"])
def test_a_long_name_is_shortened(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"x" * 10**6: {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]}}, b"0"))
    with pytest.raises(CheckpointError) as error:
        check_dtypes(path, read_header(path))
    assert len(str(error.value)) < 1000


def test_a_large_header_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**26))
        file.truncate(2**27)
    monkeypatch.setattr("safetensors.safe_open", None)
    with pytest.raises(CheckpointError, match="has a header of 67,108,864 bytes"):
        read_header(path)


def test_what_mlx_refuses_to_load_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(WHOLE)
    infos = read_header(path)

    def refuse(name):
        raise RuntimeError("[json.exception] whatever")

    monkeypatch.setattr(mx, "load", refuse)
    with pytest.raises(CheckpointError, match=r"x\.safetensors' can't be read .*whatever"):
        read_tensors(infos)


# Types


def stored(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> dict:
    """Writes a file with tensors of any type, given as bytes of it, and reads its header."""
    header, offset = {}, 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [len(data)], "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    path.write_bytes(safetensors(header, b"".join(data.tobytes() for _, data in tensors.values())))
    return read_header(path)


def float8(code: int, mantissa_bits: int) -> float:
    """The value of a float8, by its definition (arXiv 2209.05433): e4m3 has no infinity, e5m2 is as IEEE's."""
    bias = 2 ** (6 - mantissa_bits) - 1
    exponent, mantissa = divmod(code & 127, 2**mantissa_bits)
    largest = 2 ** (7 - mantissa_bits) - 1
    if exponent == largest and (mantissa == 7 if mantissa_bits == 3 else mantissa > 0):
        return math.nan
    if exponent == largest and mantissa_bits == 2:
        size = math.inf
    else:
        size = (mantissa / 2**mantissa_bits + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
    return -size if code > 127 else size


@pytest.mark.parametrize("names", [["F8_E4M3"], ["F8_E5M2"], ["F8_E4M3", "F8_E5M2"]])
def test_float8_is_read_exactly(tmp_path, names):
    codes = np.arange(256, dtype=np.uint8)
    infos = stored(tmp_path / "x.safetensors", {name: (name, codes) for name in names})
    check_dtypes(tmp_path, infos)
    for name, array in read_tensors(infos).items():
        assert array.dtype == mx.bfloat16
        expected = [float8(code, int(name[-1])) for code in range(256)]
        np.testing.assert_array_equal(np.array(array.astype(mx.float32)), np.array(expected, np.float32))


def test_float64_is_narrowed_and_its_neighbours_stay(tmp_path):
    values = np.array([1 / 3, -2.5, 1e300, 0])
    neighbours = {
        "half": ("F16", values[:2].astype(np.float16)),
        "brain": ("BF16", np.array([0x3F80, 0xC020], np.uint16)),
        "single": ("F32", values[:2].astype(np.float32)),
        "packed": ("U32", np.array([1, 2**32 - 1], np.uint32)),
        "count": ("I64", np.array([2**40])),
        "none": ("F64", values[:0]),
    }
    found = read_tensors(stored(tmp_path / "x.safetensors", {"wide": ("F64", values), **neighbours}))
    assert found["wide"].dtype == mx.float32
    assert found["wide"].tolist() == [float(np.float32(1 / 3)), -2.5, float("inf"), 0]
    assert found["half"].tolist() == values[:2].astype(np.float16).tolist()
    assert found["brain"].tolist() == [1, -2.5]
    assert found["brain"].dtype == mx.bfloat16
    assert found["single"].tolist() == values[:2].astype(np.float32).tolist()
    assert found["packed"].tolist() == [1, 2**32 - 1]
    assert found["count"].tolist() == [2**40]
    assert found["none"].shape == (0,)


def test_placeholders_have_the_shapes(tmp_path):
    infos = stored(tmp_path / "x.safetensors", {"a": ("F64", np.zeros(3)), "b": ("U32", np.zeros(2, np.uint32))})
    (tmp_path / "x.safetensors").unlink()
    found = placeholders(infos)
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "a": ((3,), mx.float32),
        "b": ((2,), mx.uint32),
    }


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (["a.weight"], "I64"),
        (["a.weight"], "U32"),
        (["a.weight"], "BOOL"),
        (["a.weight"], "U8"),
        (["a.weight"], "C64"),
        (["a.weight"], "F8_E8M0"),
        (["a.num_batches_tracked"], "I32"),
        (["a.weight", "a.scales"], "F32"),
        (["weight", "scales"], "F16"),
    ],
)
def test_types_that_can_not_be_are_listed(names, dtype):
    infos = {name: tensor_files.TensorInfo(name, "F32", (4,), Path("x")) for name in [*names, "b.bias"]}
    odd = names[0]
    infos[odd] = tensor_files.TensorInfo(odd, dtype, (4,), Path("x"))
    with pytest.raises(CheckpointError, match=rf"'x' holds .*: {odd} \({dtype}\)\.$"):
        check_dtypes(Path("x"), infos)


def test_types_that_belong_there():
    kinds = {"a.weight": "U32", "a.scales": "F16", "a.biases": "F16", "b.num_batches_tracked": "I64", "c": "F64"}
    check_dtypes(Path("x"), {name: tensor_files.TensorInfo(name, kind, (), Path("x")) for name, kind in kinds.items()})


# Several files


def shard(path: Path, **tensors: float) -> None:
    write_tensors(path, {name: mx.array([value]) for name, value in tensors.items()})


def values(folder: Path) -> dict[str, float]:
    return {name: array.item() for name, array in read_tensors(read_headers(folder)).items()}


def test_hidden_files_are_no_shards(tmp_path):
    for i in (1, 2):
        shard(tmp_path / f"model-0000{i}-of-00002.safetensors", **{f"t{i}": i})
        (tmp_path / f"._model-0000{i}-of-00002.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert values(tmp_path) == {"t1": 1, "t2": 2}


def test_a_tensor_in_two_files_is_no_choice_of_ours(tmp_path):
    shard(tmp_path / "a.safetensors", x=1, y=1, z=1)
    shard(tmp_path / "b.safetensors", x=2, y=2)
    with pytest.raises(CheckpointError, match="holds x, y in more than one file"):
        read_headers(tmp_path)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert values(tmp_path) == {"x": 1, "y": 2, "z": 1}
    del index["weight_map"]["y"]
    index["weight_map"]["z"] = "b.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json' names files for z that do not hold them"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", "", "x.bin", "./x.safetensors"]
)
def test_an_index_names_files_of_its_folder_alone(tmp_path, name):
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    for folder in (tmp_path, model, model / "sub"):
        shard(folder / "x.safetensors", a=1)
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json' names .* no safetensors file of its folder"):
        weight_files(model)


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 1}, {"a": None}, {"a": ["x.safetensors"]}])
def test_an_index_without_a_map_is_named(tmp_path, weight_map):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="has no map of the weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300 + ".safetensors", "a\0.safetensors"])
def test_an_index_with_a_name_that_no_file_can_have(tmp_path, name):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "kind",
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "complex64"],
)
def test_all_types_of_mlx_are_read_beside_one_that_it_does_not_have(tmp_path, kind):
    from safetensors.numpy import save_file

    values = np.array([0, 1, 1, 0], kind)
    save_file({"wide": np.zeros(3), "a": values}, tmp_path / "x.safetensors")
    found = read_tensors(read_header(tmp_path / "x.safetensors"))["a"]
    assert np.array(found).dtype == kind
    assert np.array_equal(np.array(found), values)


def test_a_type_that_nobody_reads_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    wide = entry(dtype="F64", data_offsets=[4, 36])["a"]
    path.write_bytes(safetensors({**entry(dtype="F8_E8M0", data_offsets=[0, 4]), "b": wide}, bytes(36)))
    with pytest.raises(CheckpointError, match=r"x\.safetensors' holds a of type F8_E8M0, which can't be read"):
        read_tensors(read_header(path))
