from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from upstream import write_upstream

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.models.mobileo import COMPONENTS


@pytest.fixture(scope="module", params=["ours", "upstream"])
def checkpoint(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """The small model in both layouts."""
    if request.param == "ours":
        return Checkpoint.open(tiny_model)
    return Checkpoint.open(write_upstream(tmp_path_factory.mktemp("upstream"), tiny_model))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])  # as they are stored, and not
@pytest.mark.parametrize("component", COMPONENTS)
def test_weights_lie_in_memory_in_the_order_of_their_elements(
    checkpoint: Checkpoint, component: str, dtype: mx.Dtype
) -> None:
    """Others would be copied by every call that reads them."""
    parameters = named_parameters(load_component(checkpoint, component, dtype=dtype))
    mx.eval(parameters)
    assert [name for name, array in parameters.items() if not memoryview(array).c_contiguous] == []


@pytest.mark.parametrize("component", ["vision_tower", "vae_decoder"])
def test_loading_reads_no_weights_and_reading_keeps_one_copy(checkpoint: Checkpoint, component: str) -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    module = load_component(checkpoint, component, dtype=mx.float16)
    nbytes = sum(array.nbytes for array in named_parameters(module).values())
    assert mx.get_active_memory() - before < 0.05 * nbytes
    mx.eval(module.parameters())
    mx.synchronize()
    assert mx.get_active_memory() - before < 1.15 * nbytes  # pages of small arrays included
