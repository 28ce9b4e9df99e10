from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mobileo_mlx.models.mcp import MCPConfig, MobileConditioningProjector, annealed_temperature, config_from_shapes

CONFIG = MCPConfig(hidden_size=16, hidden_dim=40, output_dim=24, num_layers=3)


@pytest.fixture(scope="module")
def connector() -> MobileConditioningProjector:
    mx.random.seed(0)
    return MobileConditioningProjector(CONFIG).eval()


def states(length: int, batch: int = 2) -> list[mx.array]:
    return [mx.random.normal((batch, length, 16), key=mx.random.key(i)) for i in range(3)]


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_any_length(connector: MobileConditioningProjector, length: int) -> None:
    assert connector(states(length)).shape == (2, length, 24)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_training_computes_the_same(length: int) -> None:
    model = MobileConditioningProjector(CONFIG)
    expected = model.eval()(states(length))
    assert mx.allclose(model.train()(states(length)), expected, atol=1e-5)


def test_another_number_of_states_is_an_error(connector: MobileConditioningProjector) -> None:
    with pytest.raises(ValueError, match="dimension"):
        connector(states(4)[:2])


def test_rows_of_a_batch_do_not_mix(connector: MobileConditioningProjector) -> None:
    """The channel attention averages over positions, and over nothing else."""
    both = connector(states(6))
    assert mx.allclose(both[1:], connector([state[1:] for state in states(6)]), atol=1e-5)


def test_zero_states_do_not_become_zero(connector: MobileConditioningProjector) -> None:
    zeros = connector([mx.zeros((1, 6, 16))] * 3)
    assert mx.abs(zeros).max() > 0.1


def test_a_higher_temperature_evens_the_weights_out(connector: MobileConditioningProjector) -> None:
    module = MobileConditioningProjector(CONFIG)
    module.layer_weights = mx.array([0.0, 1.0, 2.0])
    spreads = []
    for temperature in (0.5, 1.0, 2.0, 100.0):
        module.temperature = mx.array(temperature)
        weights = module.fusion_weights()
        assert abs(weights.sum().item() - 1) < 1e-6
        spreads.append((weights.max() - weights.min()).item())
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.01


def test_the_temperature_is_not_trained(connector: MobileConditioningProjector) -> None:
    names = {name for name, _ in tree_flatten(connector.trainable_parameters())}
    assert "layer_weights" in names
    assert "temperature" not in names
    assert "temperature" in dict(tree_flatten(connector.parameters()))


def test_annealing() -> None:
    """T = 0.5 + 1.5 (1 + cos(pi epoch / epochs)) / 2, at angles whose cosines are known."""
    expected = [2.0, 1.25 + 0.75 * np.sqrt(0.5), 1.25, 1.25 - 0.75 * np.sqrt(0.5), 0.5]
    assert np.allclose([annealed_temperature(epoch, 4) for epoch in range(5)], expected, rtol=0, atol=1e-12)
    assert annealed_temperature(3, 3, minimum=0.1, start=1.0) == pytest.approx(0.1)
    assert annealed_temperature(0, 3, minimum=0.1, start=1.0) == pytest.approx(1.0)


def test_dimensions_are_read_from_the_tensors() -> None:
    config = MCPConfig(
        hidden_size=16, hidden_dim=40, output_dim=24, num_layers=3, num_refinement_blocks=1, kernel_size=5
    )
    shapes = {}
    for name, w in tree_flatten(MobileConditioningProjector(config).parameters()):
        shapes[name] = (w.shape[0], 1, w.shape[1]) if name.endswith("depthwise.weight") else w.shape
    assert config_from_shapes(shapes, 3) == config
