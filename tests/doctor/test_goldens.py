import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mobileo_weights import goldens as golden_file

from benchmarks.goldens import SCENE
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO
from mobileo_mlx.doctor import goldens, self_test
from mobileo_mlx.doctor.comparison import Budget
from mobileo_mlx.errors import NotFiniteError

TIGHT = Budget(1e-5, 1e-5)  # another BLAS sums in another order, and eight steps of drawing follow from it


def test_the_bundled_model_makes_what_is_known_of_it() -> None:
    model = MobileO.load(goldens.MODEL, dtype="float32")
    compared = goldens.compare_model(model, TIGHT)
    assert [one for one in compared if not one.passed] == []
    names = {one.name for one in compared}
    assert names >= {"prompt_ids", "logits", "image_features", "conditioning", "unconditional", "latents_8", "decoded"}
    assert names == goldens.read()[1].keys()


@pytest.mark.parametrize("component", ["vision_tower", "llm", "diffusion_connector", "dit", "vae_decoder"])
def test_a_small_change_of_any_network_shows(component: str) -> None:
    model = MobileO.load(goldens.MODEL, dtype="float32")
    network = model.parts[component]
    network.update(tree_map(lambda x: x * (1 + 1e-3) if x.ndim > 1 else x, network.parameters()))
    assert [one.name for one in goldens.compare_model(model, TIGHT) if not one.passed]


def test_the_file_is_small_and_its_inputs_are_those_of_the_script() -> None:
    assert golden_file(goldens.MODEL).stat().st_size < 300_000
    given, expected = goldens.read()
    assert np.array_equal(given.image, render(SCENE))
    assert all(array.dtype in (np.float32, np.int32) for array in expected.values())
    with mx.stream(mx.cpu):
        noise = mx.random.normal(given.noise.shape, key=mx.random.key(0))
    assert np.allclose(given.noise, np.asarray(noise), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_each_precision_passes_by_its_budget(dtype: str) -> None:
    compared = goldens.compare_bundled(dtype)
    assert [one for one in compared if not one.passed] == []


def test_what_stops_the_model_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values out of float16's range must not keep what else was found from being shown and stored."""

    def stopped(*arguments: object) -> dict[str, mx.array]:
        raise NotFiniteError("dit", dtype="float16")

    monkeypatch.setattr(goldens, "compute", stopped)
    (found,) = goldens.compare_bundled()
    assert not found.passed
    assert found.stopped_by == "NotFiniteError: dit in float16 has values that are not finite."
    assert self_test._goldens(MobileO.load(goldens.MODEL)) == (False, found.stopped_by)
