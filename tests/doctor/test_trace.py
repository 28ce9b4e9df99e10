import math

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobileo_mlx.doctor.trace import plain, trace


class Doubling(nn.Linear):
    """Inherits its call."""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = [[nn.Sequential(Doubling(4, 4, bias=False), nn.Linear(4, 4, bias=False))], [nn.Identity()]]
        for factor, layer in zip((1000, 0.001), self.blocks[0][0].layers, strict=True):
            layer.weight = factor * mx.eye(4)

    def __call__(self, x):
        for (block,) in self.blocks:
            x = block(x)
        return x


def is_block(path):
    return path in ("blocks.0.0", "blocks.1.0")


def test_blocks_are_traced_with_the_largest_value_inside_of_them():
    network, x = Network(), mx.array([[1.0, -2.0, 0.5, 0.0]])
    first, second = trace(network, is_block, lambda: network(x))
    assert (first.name, second.name) == ("blocks.0.0", "blocks.1.0")
    assert first.arguments[0][0] is x
    assert mx.allclose(first.result, x)
    assert first.peak == 2000
    assert first.peak_layer in ("blocks.0.0.layers.0", "blocks.0.0.layers.1")  # one gives it, the other takes it
    assert second.peak == 2
    assert second.arguments[0][0] is first.result


def test_the_last_call_is_kept_and_the_largest_value_of_all():
    network = Network()
    x = mx.ones((1, 4))
    (first, _) = trace(network, is_block, lambda: (network(3 * x), network(x)))
    assert mx.allclose(first.result, x)
    assert first.peak == 3000


def test_what_is_not_a_number_counts_as_the_largest():
    network = Network()
    first, _ = trace(network, is_block, lambda: network(mx.array([[math.nan, 1e9, 0, 0]])))
    assert math.isnan(first.peak)


@pytest.mark.parametrize("fails", [False, True])
def test_classes_are_as_before(fails):
    network = Network()
    before = nn.Linear.__call__

    def run():
        assert nn.Linear.__call__ is not before
        if fails:
            raise RuntimeError("stop")

    if fails:
        with pytest.raises(RuntimeError):
            trace(network, is_block, run)
    else:
        trace(network, is_block, run)
    assert nn.Linear.__call__ is before
    assert "__call__" not in vars(Doubling)


def test_the_plain_form_has_the_statistics_of_inference():
    norm = nn.BatchNorm(2)
    network = plain(nn.Sequential(norm, nn.Linear(2, 2)).eval())
    assert network.training
    x = mx.random.normal((8, 2), key=mx.random.key(0)) + 5
    norm(x)
    assert not norm.training
    assert mx.array_equal(norm.running_mean, mx.zeros(2))
