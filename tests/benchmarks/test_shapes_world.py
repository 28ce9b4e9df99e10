import itertools
import math

import numpy as np
import pytest

from benchmarks.shapes.world import (
    BACKGROUNDS,
    CATEGORIES,
    GRID,
    HELD_OUT,
    LAYOUTS,
    RADIUS,
    RGB,
    SHAPES,
    WORLD,
    Object,
    Scene,
    render,
    render_batch,
    sample_scene,
)
from mobileo_mlx.errors import OptionError

# Of shapes of radius 1, from the formulas of elementary geometry.
AREAS = {
    "circle": math.pi,
    "square": 1.76**2,
    "triangle": 1.05 * 1.85,
    "star": 10 * 0.5 * 1.1 * 0.45 * 1.1 * math.sin(math.pi / 5),
    "diamond": 2 * 0.8 * 1.15,
    "cross": 2 * 2 * 0.66 - 0.66**2,
    "ring": math.pi * (1 - 0.55**2),
}


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("shape", AREAS)
def test_area(shape: str, size: int) -> None:
    pixels = render(Scene((Object(shape, "black", 4, 4),)), size).astype(float)
    coverage = (255 - pixels[..., 0]) / (255 - RGB["black"][0])
    assert coverage.sum() / size**2 == pytest.approx(AREAS[shape] * RADIUS**2, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("circle", (0.69, 0.69), (0.73, 0.73)),
        ("square", (0.85, 0.85), (0.92, 0.0)),
        ("triangle", (0.9, 0.8), (0.6, -0.3)),
        ("star", (0.0, -0.95), (0.0, 0.6)),
        ("diamond", (0.0, 1.05), (0.6, 0.6)),
        ("cross", (0.29, 0.95), (0.4, 0.4)),
        ("ring", (0.0, 0.6), (0.0, 0.5)),
    ],
)
def test_geometry(shape: str, inside: tuple[float, float], outside: tuple[float, float]) -> None:
    size = 512
    pixels = render(Scene((Object(shape, "red", 2, 6),), "cyan"), size)

    def at(point: tuple[float, float]) -> tuple[int, ...]:
        x, y = ((centre / 8 + RADIUS * offset) * size for centre, offset in zip((2, 6), point, strict=True))
        return tuple(pixels[int(y), int(x)])

    assert at(inside) == RGB["red"]
    assert at(outside) == RGB["cyan"]


def test_edges_are_smooth() -> None:
    pixels = render(Scene((Object("circle", "black", 4, 4),)), 64)[..., 0]
    assert len(np.unique(pixels)) > 10
    assert {int(pixels.min()), int(pixels.max())} == {20, 255}


def test_batch_is_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, category, background=None) for category in CATEGORIES]
    batch = render_batch(scenes, 64)
    assert batch.dtype == np.uint8
    assert batch.shape == (4, 64, 64, 3)
    for image, scene in zip(batch, scenes, strict=True):
        np.testing.assert_array_equal(image, render(scene, 64))


def test_layouts_are_all_that_fit() -> None:
    assert {count: len(layouts) for count, layouts in LAYOUTS.items()} == {1: 9, 2: 16, 3: 8, 4: 1}
    for layout in itertools.chain.from_iterable(LAYOUTS.values()):
        covered = [
            (x // 2 - 1 + i, y // 2 - 1 + j) for x, y in layout for i, j in itertools.product(range(2), repeat=2)
        ]
        assert len(set(covered)) == 4 * len(layout)


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_follow_the_rules(category: str) -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, category, background=None) for _ in range(400)]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    for scene in scenes:
        places = [(thing.x, thing.y) for thing in scene.objects]
        assert all(x in GRID and y in GRID for x, y in places)
        if category == "two":
            assert [x for x, _ in places] == [2, 6]
            assert len({y for _, y in places}) == 1
        if category == "position":
            assert sorted(xy for xy in zip(*places, strict=True) if len(set(xy)) == 2) in ([(2, 6)], [(6, 2)])
        if category in ("two", "position"):
            assert len(scene.pairs) == 2
    counts = {len(scene.objects) for scene in scenes}
    assert counts == {"single": {1}, "count": {1, 2, 3, 4}}.get(category, {2})


@pytest.mark.parametrize("category", CATEGORIES)
def test_held_out(category: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        assert not sample_scene(rng, category).pairs & HELD_OUT
        assert sample_scene(rng, category, held_out=True).pairs & HELD_OUT
    assert any(sample_scene(rng, category, held_out=None).pairs & HELD_OUT for _ in range(300))


def test_same_seed_same_scene() -> None:
    assert sample_scene(np.random.default_rng(3), "count") == sample_scene(np.random.default_rng(3), "count")


def test_something_new_leaves_the_world_as_it_is() -> None:
    assert WORLD.extended("brown").colours == (*WORLD.colours, "brown")
    assert WORLD.extended("ring").shapes == (*SHAPES, "ring")
    assert "brown" not in WORLD.colours
    assert "ring" not in WORLD.shapes
    with pytest.raises(OptionError, match="brown, ring"):
        WORLD.extended("mauve")


def test_unknown_category() -> None:
    with pytest.raises(OptionError, match="single, two, count, position"):
        sample_scene(np.random.default_rng(0), "triple")
