from __future__ import annotations

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mobileo_mlx.models import fastvithd
from mobileo_mlx.models.fastvithd import (
    FastViTHD,
    FastViTHDConfig,
    MMProjector,
    MMProjectorConfig,
    RepMixerBlock,
    config_from_shapes,
    sanitize,
)
from mobileo_mlx.ops import backend, bands
from mobileo_mlx.ops.blocks import follow

CONFIG = FastViTHDConfig(
    layers=(1, 2, 1, 1, 1), embed_dims=(4, 8, 16, 32, 64), mlp_ratios=(2, 2, 2, 2, 2), se_channels=6
)


@pytest.fixture(scope="module")
def tower() -> FastViTHD:
    mx.random.seed(0)  # by chance all six gates could be closed
    return FastViTHD(CONFIG).eval()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 192), (128, 64)])
def test_one_token_for_each_patch(tower: FastViTHD, height: int, width: int) -> None:
    assert CONFIG.patch_size == 64
    tokens = tower(mx.random.uniform(shape=(2, height, width, 3)))
    assert tokens.shape == (2, height * width // 64**2, CONFIG.output_dim)
    assert mx.isfinite(tokens).all()


def test_tokens_are_in_row_major_order(tower: FastViTHD) -> None:
    x = mx.random.uniform(shape=(1, 128, 192, 3))
    y = x
    for blocks in tower.parts():
        y = follow(blocks, y)
    assert y.shape == (1, 2, 3, CONFIG.output_dim)
    assert mx.array_equal(y.reshape(1, 6, -1), tower(x))


def test_rows_of_a_batch_do_not_mix(tower: FastViTHD) -> None:
    x = mx.random.uniform(shape=(2, 64, 64, 3))
    assert mx.allclose(tower(x)[1:], tower(x[1:]), atol=1e-5)


def test_the_forms_of_a_gpu_are_those_of_a_cpu(tower: FastViTHD, monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.random.uniform(shape=(1, 128, 64, 3))
    expected = tower.encode(x)
    mx.eval(expected)
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    for tokens in (tower(x), tower.encode(x)):
        assert mx.abs(tokens - expected).max() <= 1e-5 * mx.abs(expected).max()


def test_half_precision_keeps_its_dtype() -> None:
    tower = FastViTHD(CONFIG).eval()
    tower.set_dtype(mx.float16)
    x = mx.random.uniform(shape=(1, 64, 64, 3)).astype(mx.float16)
    assert tower(x).dtype == tower.encode(x).dtype == mx.float16


@pytest.fixture
def lively() -> FastViTHD:
    """A tower whose layer scales and statistics are not those of the beginning, so that nothing is hidden."""
    tower = FastViTHD(CONFIG).eval()
    values = dict(tree_flatten(tower.parameters()))
    for i, (name, value) in enumerate(values.items()):
        noise = mx.random.uniform(0.5, 1.5, value.shape, key=mx.random.key(i))
        if "layer_scale" in name or ".bn." in name:
            values[name] = noise
    return tower.update(tree_unflatten(list(values.items())))


@pytest.mark.parametrize("device", ["cpu", "metal"])
def test_norms_are_folded_once_in_float32(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Also where weights are float16; and again where they are others, as after a step of training."""
    monkeypatch.setattr(backend, "backend", lambda: device)
    folds, fold = [], fastvithd._folded
    monkeypatch.setattr(fastvithd, "_folded", lambda *a: folds.append(1) or fold(*a))
    block = fastvithd.ConvNorm(6, 1e-5).eval()
    x = mx.random.normal((1, 9, 8, 6), key=mx.random.key(0))
    y = block.conv(x) + 30  # far from zero, so that rounding gain and shift one by one would show
    x = x + 30 / block.conv.weight.sum(axis=(1, 2)).flatten()
    block.bn.running_mean, block.bn.running_var = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
    block.set_dtype(mx.float16)
    names = [name for name, _ in tree_flatten(block.parameters())]
    (layer,), (again,) = block.steps(), block.steps()
    assert len(folds) == 1
    assert [name for name, _ in tree_flatten(block.parameters())] == names
    assert layer.weight is again.weight
    assert layer.weight.dtype == layer.bias.dtype == mx.float16
    values = [v.astype(mx.float32) for v in (block.conv.weight, *block._norm()[:4])]
    gain = values[1] / mx.sqrt(values[4] + 1e-5)
    assert mx.array_equal(layer.bias, (values[2] - gain * values[3]).astype(mx.float16))
    assert mx.allclose(layer.weight, (values[0] * gain[:, None, None, None]), rtol=1e-3)
    before = block(x.astype(mx.float16))
    block.bn.update({"weight": 2 * block.bn.weight, "bias": 2 * block.bn.bias})
    assert mx.allclose(block(x.astype(mx.float16)), 2 * before, rtol=1e-2, atol=1e-2)
    assert len(folds) == 2


@pytest.mark.parametrize("limit", [1, 2**13, 2**30])  # bytes: bands of four rows, of some, and the whole map
@pytest.mark.parametrize("size", [(64, 64), (192, 128)])
def test_bands_are_the_whole(
    lively: FastViTHD, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], limit: int
) -> None:
    """And both are what training computes, where no norm is folded and attention takes all heads at once."""
    monkeypatch.setattr(bands, "CPU_BYTES", limit)
    monkeypatch.setattr(bands, "GPU_BYTES", limit)
    x = mx.random.uniform(shape=(2, *size, 3), key=mx.random.key(0))
    whole = lively(x)
    results = [whole, bands.run([b for blocks in lively.parts() for b in blocks], x).flatten(1, 2), lively.encode(x)]
    lively.train()
    for _, module in lively.named_modules():
        if isinstance(module, nn.BatchNorm):
            module.eval()  # the batch's own statistics are another function
    expected = lively(x)
    for y in results:
        assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


@pytest.mark.skipif(not backend.on_cpu(), reason="planes are for a CPU")
def test_planes_are_for_plain_linear_layers_alone(lively: FastViTHD, monkeypatch: pytest.MonkeyPatch) -> None:
    class Negated(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            return -super().__call__(x)

    x = mx.random.uniform(shape=(1, 64, 64, 3), key=mx.random.key(0))
    block = lively.network[0][0]
    assert isinstance(block, RepMixerBlock)
    before, layer = lively.encode(x), block.convffn.fc2
    block.convffn.fc2 = Negated(*reversed(layer.weight.shape)).update(layer.parameters())
    y, expected = lively.encode(x), lively(x)
    assert mx.abs(y - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()
    assert not mx.allclose(y, before, rtol=1e-3)
    block.convffn.fc2 = layer
    monkeypatch.delattr(RepMixerBlock, "steps")
    assert mx.array_equal(lively.encode(x), before)


def test_every_parameter_matters(tower: FastViTHD) -> None:
    """A part that is built and never called would load, and be wrong."""
    x = mx.random.uniform(shape=(1, 64, 64, 3), key=mx.random.key(0))
    params = dict(tree_flatten(tower.trainable_parameters()))

    def loss(values: dict[str, mx.array]) -> mx.array:
        tower.load_weights(list(values.items()), strict=False)
        # Layer scales start at 1e-5, so that nothing may be rounded away here.
        return (tower(x) * mx.random.normal((1, 1, CONFIG.output_dim), key=mx.random.key(1))).sum()

    gradients = mx.grad(loss)(params)
    tower.load_weights(list(params.items()), strict=False)
    assert [name for name, g in gradients.items() if not (mx.abs(g).max() > 0).item()] == []


def test_dimensions_are_read_from_the_tensors(tower: FastViTHD) -> None:
    config = dataclasses.replace(CONFIG, mlp_ratios=(2.0, 3.0, 4.0, 2.0, 2.0), pos_embs=(None, 3, None, 7, 7))
    shapes = {}
    for name, w in tree_flatten(FastViTHD(config).parameters()):
        shape = w.shape
        if w.ndim == 4:
            shape = (shape[0], shape[3], shape[1], shape[2])
        shapes[name] = shape
    assert config_from_shapes(shapes) == config


def test_what_is_never_used_is_dropped() -> None:
    weights = {"head.proj": mx.zeros((4, 4)), "network.0.0.convffn.conv.bn.num_batches_tracked": mx.array(3)}
    assert sanitize(weights) == {}


def test_projector() -> None:
    projector = MMProjector(MMProjectorConfig(input_dim=6, hidden_dim=10, output_dim=8))
    assert projector(mx.ones((2, 5, 6))).shape == (2, 5, 8)
