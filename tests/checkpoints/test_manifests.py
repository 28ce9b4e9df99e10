"""Every tensor of the official checkpoints has its place. Nothing is computed: shapes alone are compared."""

import json

import mlx.core as mx
import mobileo_weights
import pytest
from mlx.utils import tree_flatten

from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig, build, component_of, sanitize

SIZES = mobileo_weights.SIZES
# Stored, and without influence on any output: BatchNorm's counters, and the classifier of the vision tower.
IGNORED = ("num_batches_tracked", "vision_tower.vision_tower.model.head.proj")


def config_of(size: str) -> MobileOConfig:
    """Without the diffusers' files: the built-in tables of the published names serve."""
    return MobileOConfig.from_upstream(mobileo_weights.upstream_config(size), mobileo_weights.manifest(size))


@pytest.fixture(scope="module", params=SIZES)
def size(request) -> str:
    return request.param


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_takes_exactly_its_tensors(size, component):
    config = config_of(size)
    tensors = {
        found[1]: mx.zeros(shape)
        for name, shape in mobileo_weights.manifest(size).items()
        if (found := component_of(name)) is not None and found[0] == component
    }
    assert tensors
    before = mx.get_active_memory()
    given = {name: a.shape for name, a in sanitize(component, tensors, config).items()}
    built = {name: a.shape for name, a in tree_flatten(build(component, config).parameters())}
    assert given == built
    assert mx.get_active_memory() - before < 1000


def test_every_tensor_belongs_to_a_component_or_is_ignored(size):
    config = config_of(size)
    used = 0
    names = mobileo_weights.manifest(size)
    for name, shape in names.items():
        component, inner = component_of(name) or pytest.fail(f"{name} belongs to nothing")
        kept = len(sanitize(component, {inner: mx.zeros(shape)}, config))
        assert kept == (0 if name.endswith(IGNORED) else 1), name
        used += kept
    assert len(names) - used == sum(name.endswith(IGNORED) for name in names)


@pytest.mark.parametrize(("name", "count"), [("0.5B", 1873), ("1.5B", 1769)])
def test_the_manifests_are_whole(name, count):
    assert len(mobileo_weights.manifest(name)) == count


def test_the_dimensions_are_the_published_ones():
    small, large = config_of("0.5B"), config_of("1.5B")
    assert small.default_size == large.default_size == (512, 512)
    assert (small.image_size, small.image_tokens, small.vae.factor) == (1024, 256, 32)
    assert (small.dit.dim, small.dit.num_layers) == (1152, 28)
    assert (large.dit.dim, large.dit.num_layers) == (2240, 20)
    assert (small.llm.hidden_size, large.llm.hidden_size) == (896, 1536)
    assert small.vision_tower == large.vision_tower
    assert small.vision_tower.layers == (2, 12, 24, 4, 2)
    assert small.llm.vocab_size == 151649


def test_they_are_those_of_the_reference(size, reference):
    stored = json.loads((reference / f"manifest-{size}.json").read_text())["tensors"]
    assert mobileo_weights.manifest(size) == {name: tuple(t["shape"]) for name, t in stored.items()}
    assert mobileo_weights.upstream_config(size) == json.loads((reference / f"config-{size}.json").read_text())
    # The tables that are built in are those of the diffusers' files.
    dit = json.loads((reference / f"sana-transformer-{size}.json").read_text())
    vae = json.loads((reference / "dc-ae.json").read_text())
    scheduler = json.loads((reference / "scheduler.json").read_text())
    config, shapes = mobileo_weights.upstream_config(size), mobileo_weights.manifest(size)
    read = MobileOConfig.from_upstream(config, shapes, dit=dit, vae=vae, scheduler=scheduler)
    assert read == config_of(size)


def test_bundled_models_are_the_folders_with_a_config(tmp_path, monkeypatch):
    for name in ("tiny", "half"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    monkeypatch.setattr(mobileo_weights, "_ROOT", tmp_path)
    assert mobileo_weights.bundled() == {"tiny": tmp_path / "models" / "tiny"}
