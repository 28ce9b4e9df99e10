"""From our layout back to upstream's: names and shapes are those of the published checkpoints, values those before."""

import math
import re

import mlx.core as mx
import mobileo_weights
import pytest
from mlx.utils import tree_flatten

from mobileo_mlx.models.fastvithd import unused
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig, build, component_of, sanitize, to_upstream


@pytest.mark.parametrize("size", mobileo_weights.SIZES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_names_and_shapes_of_the_published_checkpoints(size, component):
    """Nothing is computed: the arrays of a built network are lazy."""
    manifest = mobileo_weights.manifest(size)
    config = MobileOConfig.from_upstream(mobileo_weights.upstream_config(size), manifest)
    weights = to_upstream(component, dict(tree_flatten(build(component, config).parameters())), config)
    if component == "vision_tower":
        weights |= unused(weights)
    published = {found[1]: shape for name, shape in manifest.items() if (found := component_of(name))[0] == component}
    assert {name: array.shape for name, array in weights.items()} == published


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name not in ("llm", "lm_head")])
def test_it_undoes_sanitize(component):
    """On arrays whose elements all differ, so that a wrong order of dimensions shows; one of each name and shape."""
    manifest = mobileo_weights.manifest("0.5B")
    config = MobileOConfig.from_upstream(mobileo_weights.upstream_config("0.5B"), manifest)
    kinds = {}
    for name, shape in manifest.items():
        found = component_of(name)
        if found[0] == component and not found[1].endswith(("num_batches_tracked", "head.proj")):
            kinds[re.sub(r"\d+", "*", found[1]), shape] = found[1]
    assert kinds
    for (_, shape), name in kinds.items():
        array = mx.arange(math.prod(shape)).reshape(shape)
        back = to_upstream(component, sanitize(component, {name: array}, config), config)
        assert list(back) == [name]
        assert back[name].shape == array.shape
        assert mx.array_equal(back[name], array), name
