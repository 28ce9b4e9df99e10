"""What a GPU is asked for, on the small model; and that the counter would see the copies that there are none of."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from upstream import write_upstream

from benchmarks.gpu_counts import ROWS, count, table
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.ops.conv import Conv2d


@pytest.mark.parametrize("component", ["vae_decoder", "vae_encoder", "vision_tower"])
def test_no_call_copies_weights_or_waits(tiny_model: Path, tmp_path: Path, component: str) -> None:
    checkpoint = Checkpoint.open(write_upstream(tmp_path, tiny_model))
    module = load_component(checkpoint, component, dtype=mx.float16)
    mx.eval(module.parameters())
    config = checkpoint.config
    if component == "vae_decoder":
        found = count(module, lambda: module.decode(mx.zeros((1, 4, 4, config.vae.latent_channels))))
    else:
        found = count(module, lambda: module.encode(mx.zeros((1, 128, 128, 3))))
    assert found["convolution"] > 10
    assert found["async_eval"] > 5
    assert [found[key] for key in ("eval", "made", "strided", "strided_mb", "contiguous")] == [0] * 5


def test_copies_are_seen() -> None:
    layer = Conv2d(4, 4, 3, padding=1).eval()
    layer.set_dtype(mx.float16)
    x = mx.zeros((1, 5, 5, 4), mx.float16)
    assert count(layer, lambda: layer(x))["convolution"] == 1
    layer.weight = layer.weight.swapaxes(1, 2)
    mx.eval(layer.weight)
    found = count(layer, lambda: mx.conv2d(x, layer.weight))
    assert (found["strided"], found["made"]) == (1, 0)
    found = count(layer, lambda: mx.eval(mx.conv2d(x, layer.weight[:, ::-1])))
    assert (found["strided"], found["made"], found["eval"]) == (1, 1, 1)


def test_the_table_has_both_versions_side_by_side() -> None:
    now, before = {"decoder": {"eval": 0}}, {"decoder": {"eval": 7}}
    lines = table(now, before).splitlines()
    assert lines[0] == "| | decoder: before | now |"
    assert f"| {ROWS['eval']} | 7 | 0 |" in lines
    assert f"| {ROWS['eval']} | 0 |" in table(now, None).splitlines()
