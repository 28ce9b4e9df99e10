"""BatchNorm's statistics: float32, whatever comes in and whatever the network is cast to."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from mobileo_mlx.models.batch_norm import BatchNorm
from mobileo_mlx.models.fastvithd import FastViTHD, FastViTHDConfig

CONFIG = FastViTHDConfig(
    layers=(1, 1, 1, 1, 1), embed_dims=(4, 8, 16, 32, 64), mlp_ratios=(2, 2, 2, 2, 2), se_channels=6
)


def norms_of(network: nn.Module) -> list[BatchNorm]:
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_in_half_precision_the_statistics_are_those_of_float32(dtype: mx.Dtype) -> None:
    x = (300 + mx.random.normal((4, 16, 16, 8), key=mx.random.key(0))).astype(dtype)  # the squares leave float16
    exact, half = nn.BatchNorm(8), BatchNorm(8)
    half.set_dtype(dtype)
    expected, y = exact(x.astype(mx.float32)), half(x)
    assert y.dtype == dtype
    assert mx.allclose(y.astype(mx.float32), expected, atol=8 * mx.finfo(dtype).eps)
    for name in ("running_mean", "running_var"):
        assert half[name].dtype == mx.float32
        assert mx.allclose(half[name], exact[name], rtol=1e-6)


def test_in_evaluation_the_result_has_the_dtype_of_the_input() -> None:
    norm = BatchNorm(4).eval()
    norm.running_mean, norm.running_var = mx.array([1.0, 2, 3, 4]), mx.array([1.0, 4, 9, 16])
    norm.set_dtype(mx.bfloat16)
    assert norm(mx.ones((2, 4), mx.bfloat16)).dtype == mx.bfloat16
    assert mx.allclose(norm(mx.ones((2, 4))), nn.BatchNorm.__call__(norm, mx.ones((2, 4))))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_statistics_of_a_tower_are_not_rounded(dtype: mx.Dtype) -> None:
    tower = FastViTHD(CONFIG)
    for norm in norms_of(tower):
        norm.running_mean = norm.running_mean + 1.0001  # which no half precision has
        norm.running_var = norm.running_var + 1.0001
    before = tree_map(lambda a: a, tower.parameters())
    tower.set_dtype(dtype)
    for norm in norms_of(tower):
        assert norm.weight.dtype == norm.bias.dtype == dtype
        assert norm.running_mean.dtype == norm.running_var.dtype == mx.float32
        assert mx.allclose(norm.running_mean, mx.array(1.0001), rtol=1e-6)
        assert mx.allclose(norm.running_var, mx.array(2.0001), rtol=1e-6)
    assert tower.conv_exp.reparam_conv.weight.dtype == dtype
    tower.update(before)
    tower.set_dtype(dtype, lambda kind: False)
    assert tower.conv_exp.reparam_conv.weight.dtype == mx.float32


def test_a_stored_checkpoint_gives_float32_statistics(tiny_model) -> None:
    from mobileo_mlx import MobileO

    tower = MobileO.load(tiny_model, dtype="bfloat16").parts.vision_tower
    assert len(norms_of(tower)) >= 5
    assert {norm.running_var.dtype for norm in norms_of(tower)} == {mx.float32}
    x = mx.random.uniform(shape=(1, 128, 128, 3))
    assert tower(x).dtype == tower.encode(x).dtype == mx.bfloat16
    assert tower.train()(x).dtype == mx.bfloat16
