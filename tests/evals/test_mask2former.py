"""The detector: sampling against slow loops, weights by name and shape, and what comes before and after the network."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mobileo_mlx.checkpoints.tensor_files import write_tensors
from mobileo_mlx.errors import CheckpointError
from mobileo_mlx.evals.detectors import instances as module
from mobileo_mlx.evals.detectors import mask2former_weights as weights_module
from mobileo_mlx.evals.detectors.mask2former import Mask2Former, Mask2FormerConfig, attention_mask
from mobileo_mlx.evals.detectors.sampling import resize, sample
from mobileo_mlx.evals.detectors.swin import SwinConfig, shift_mask

TINY = Mask2FormerConfig(
    backbone=SwinConfig(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=3, mlp_ratio=2.0),
    dim=32,
    mask_dim=16,
    heads=4,
    encoder_layers=1,
    encoder_hidden=24,
    decoder_layers=2,
    decoder_hidden=40,
    queries=7,
    classes=5,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def network() -> Mask2Former:
    mx.random.seed(0)
    return Mask2Former(TINY)


def test_sampling_against_loops():
    maps, rows, columns = normal(2, 3, 5, 4), 3, 5
    x, y = normal(2, 40) * 3 + 2, normal(2, 40, seed=1) * 3 + 1
    x[0, :3], y[0, :3] = (0, 4, 1e9), (0, 2, -1e9)
    found = np.array(sample(mx.array(maps), mx.array(x), mx.array(y)))
    for n in range(2):
        for p in range(40):
            expected = np.zeros(4)
            for row in range(rows):
                for column in range(columns):
                    share = max(0, 1 - abs(y[n, p] - row)) * max(0, 1 - abs(x[n, p] - column))
                    expected += share * maps[n, row, column]
            assert np.allclose(found[n, p], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 3), (2, 11), (4, 6)])
def test_resize_against_its_matrices(size):
    x = normal(1, 4, 6, 2)
    rows, columns = module.weights_along(4, size[0]), module.weights_along(6, size[1])
    expected = np.einsum("uh,bhwc,vw->buvc", rows, x, columns)
    assert np.allclose(resize(mx.array(x), size), expected, atol=1e-6)
    assert np.allclose(rows.sum(1), 1)


def test_tokens_that_were_no_neighbours_do_not_see_each_other():
    mask = np.array(shift_mask(6, 6, 3, 1))
    assert mask.shape == (4, 9, 9)
    assert not mask[0].any()  # inside of the map nothing was moved past an edge
    assert (mask[3] == -100).sum() == 81 - (16 + 4 + 4 + 1)  # the last window holds four pieces: 4, 2, 2 and 1 tokens


def test_a_query_whose_mask_is_empty_looks_everywhere():
    logits = np.full((1, 2, 4, 4), -1.0, np.float32)
    logits[0, 1, :2, :2] = 1
    seen = np.array(attention_mask(mx.array(logits), (2, 2)))
    assert seen.shape == (1, 1, 2, 4)
    assert seen[0, 0].tolist() == [[True] * 4, [True, False, False, False]]


def other_layout(rules: tuple) -> dict[str, mx.array]:
    """A file's tensors in another layout, with numbers that tell where each came from; made without its `make`s."""
    tensors: dict[str, mx.array] = {}
    for name, array in weights_module.parameters(network()).items():
        source = weights_module.source(name, rules)
        shape = array.shape
        if array.ndim == 4:
            tensors[source.names[0]] = array.transpose(0, 3, 1, 2)
        elif len(source.names) == 3:
            tensors |= dict(zip(source.names, mx.split(array, 3), strict=True))
        elif "in_proj" in source.names[0]:
            place = "qkv".index(re.search(r"\.(q|k|v)_proj", name)[1])
            rows = mx.zeros((3 * shape[0], *shape[1:])) if source.names[0] not in tensors else tensors[source.names[0]]
            rows[place * shape[0] : (place + 1) * shape[0]] = array
            tensors[source.names[0]] = rows
        elif "downsample" in name and rules is weights_module.OPENMMLAB:
            top_left, bottom_left, top_right, bottom_right = mx.split(array, 4, axis=-1)
            by_channel = mx.stack([top_left, top_right, bottom_left, bottom_right], axis=-1)  # as nn.Unfold sorts
            tensors[source.names[0]] = by_channel.reshape(shape)
        else:
            tensors[source.names[0]] = array
    return {name: mx.contiguous(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", ["TRANSFORMERS", "OPENMMLAB"])
def test_layouts_give_the_same_network(layout, tmp_path):
    tensors = other_layout(getattr(weights_module, layout))
    extra = {
        "TRANSFORMERS": "criterion.empty_weight",
        "OPENMMLAB": "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index",
    }[layout]
    write_tensors(tmp_path / "model.safetensors", tensors | {extra: mx.zeros((3,))})
    loaded = weights_module.load_mask2former(tmp_path, TINY)
    for name, array in weights_module.parameters(network()).items():
        assert mx.array_equal(weights_module.parameters(loaded)[name], array), name


@pytest.mark.parametrize("layout", ["TRANSFORMERS", "OPENMMLAB"])
def test_each_name_has_one_source_at_full_size(layout):
    rules = getattr(weights_module, layout)
    names = weights_module.shapes(Mask2Former(Mask2FormerConfig()))
    taken = [(part, i) for name in names for i, part in enumerate(weights_module.source(name, rules).names)]
    joined = {part for part, _ in taken if ".in_proj_" in part}
    assert len(taken) == len(set(taken)) + 2 * len(joined)  # queries, keys and values; all others are taken once


def test_all_that_does_not_fit_is_listed(tmp_path):
    tensors = dict(weights_module.parameters(network()))
    del tensors["decoder.norm.bias"]
    tensors["decoder.class_embed.bias"] = mx.zeros((9,))
    tensors["else"] = mx.zeros((2,))
    write_tensors(tmp_path / "m.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"missing: decoder\.norm\.bias; unexpected: else; of the wrong shape: "):
        weights_module.load_mask2former(tmp_path / "m.safetensors", TINY)


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "m.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"benchmarks\.convert_detector m\.pth"):
        weights_module.load_mask2former(tmp_path / "m.pth")


def test_conversion(tmp_path):
    from benchmarks.convert_detector import convert

    source = tmp_path / "openmmlab.safetensors"
    write_tensors(source, other_layout(weights_module.OPENMMLAB))
    path = convert(source, tmp_path / "out", TINY)
    assert path == tmp_path / "out" / weights_module.FILE
    detector = module.Mask2FormerDetector(weights_module.load_mask2former(tmp_path / "out", TINY), names="abcde")
    found = detector.detect(Image.new("RGB", (40, 30), "red"))
    assert len(found) == 7 * 5
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {one.mask.shape for one in found} == {(30, 40)}
    assert '"sha256": "' in (tmp_path / "out" / "mask2former.json").read_text()


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (800, 800)), ((480, 640), (800, 1067)), ((100, 400), (333, 1333))]
)
def test_sizes(size, expected):
    assert module.resized(*size) == expected


def test_what_is_padded_is_grey(monkeypatch):
    monkeypatch.setattr(module, "MAX_SHORT", 40)
    pixels, inside = module.prepare(Image.new("RGB", (20, 20), (255, 0, 0)))
    assert pixels.shape == (64, 64, 3)
    assert inside == (40, 40)
    assert np.allclose(pixels[:40, :40], (np.array([255, 0, 0]) - module.MEAN) / module.STD)
    assert np.allclose(pixels[40:], (128 - module.MEAN) / module.STD)


def test_objects_of_an_answer():
    classes = np.full((2, 3), -20.0, np.float32)
    classes[0, 1] = classes[1, 2] = 20  # a "cat", and nothing
    masks = np.full((2, 4, 4), -20.0, np.float32)
    masks[0, 1:3, 2:] = 20
    found = module.instances(classes, masks, padded=(16, 16), inside=(16, 16), size=(8, 8), names=("dog", "cat"))
    assert found[0].name == "cat"
    assert found[0].box == (4.0, 2.0, 8.0, 6.0)
    assert found[0].score == pytest.approx(0.99, abs=0.01)  # pixels at the mask's edge are less sure
    assert found[0].mask.sum() == 16
    empty = [one for one in found if one.score == 0]
    assert [one.box for one in empty] == [(0.0, 0.0, 0.0, 0.0)] * 2


def test_names_are_genevals():
    names = module.object_names()
    assert len(names) == 80
    assert (names[0], names[64], names[79]) == ("person", "computer mouse", "toothbrush")


def test_file_and_folder(tmp_path: Path):
    with pytest.raises(CheckpointError):
        weights_module.load_mask2former(tmp_path / "none.safetensors")
