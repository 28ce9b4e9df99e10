import itertools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.shapes.edits import EDIT_TYPES, Edit, sample_edit
from benchmarks.shapes.scorer import (
    Reading,
    components,
    edit_succeeded,
    keeps_relation,
    read_picture,
    satisfies,
    shows,
    shows_colours,
)
from benchmarks.shapes.text import Spec, sample_caption
from benchmarks.shapes.world import BACKGROUNDS, CATEGORIES, COLOURS, SHAPES, WORLD, Object, Scene, render, sample_scene


def read(*objects: Object, background: str = "white", size: int = 64) -> Reading:
    return read_picture(render(Scene(objects, background), size))


RED_STAR, BLUE_SQUARE = Object("star", "red", 2, 4), Object("square", "blue", 6, 4)
CAPTION = Spec((("star", "red"), ("square", "blue")), "white", "to the left of")


def flood_fill(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    result = []
    while left:
        queue, part = [left.pop()], set()
        while queue:
            y, x = queue.pop()
            part.add((y, x))
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if place in left:
                    left.remove(place)
                    queue.append(place)
        result.append(part)
    return result


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (32, 40)])
def test_components_are_those_of_a_flood_fill(share: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = rng.random(shape) < share
        found = [set(zip(rows.tolist(), columns.tolist(), strict=True)) for rows, columns in components(mask)]
        assert sorted(map(sorted, found)) == sorted(map(sorted, flood_fill(mask)))


@pytest.mark.parametrize("size", [64, 128])
def test_every_object_on_every_ground(size: int) -> None:
    for shape, colour, background in itertools.product(SHAPES, COLOURS, BACKGROUNDS):
        reading = read(Object(shape, colour, 2, 6), background=background, size=size)
        assert [(found.shape, found.colour) for found in reading.objects] == [(shape, colour)]
        assert reading.background == background
        (found,) = reading.objects
        assert found.iou > 0.82
        assert (found.x, found.y) == pytest.approx((2 / 8, 6 / 8), abs=0.02)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("category", CATEGORIES)
def test_true_pictures_are_right(category: str, held_out: bool, size: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        caption = sample_caption(rng, category, held_out=held_out, named_background=0.5)
        reading = read_picture(render(caption.scene, size))
        assert satisfies(reading, caption.spec)
        assert shows(reading, caption.spec)
        assert keeps_relation(reading, caption.spec)


@pytest.mark.parametrize("category", CATEGORIES)
def test_spoilt_pictures_are_wrong(category: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        caption = sample_caption(rng, category, coloured=True)
        scene = caption.scene
        thing = scene.objects[0]
        wrong = [
            replace(scene, background=next(name for name in BACKGROUNDS if name != scene.background)),
            replace(scene, objects=scene.objects[1:]),
            change(scene, replace(thing, colour=next(name for name in COLOURS if name != thing.colour))),
            change(scene, replace(thing, shape=next(name for name in SHAPES if name != thing.shape))),
        ]
        for other in wrong:
            # The change may make the second object of the first and the first of the second.
            if sorted(o.pair for o in other.objects) != sorted(o.pair for o in scene.objects):
                assert not shows(read_picture(render(other)), caption.spec)
            assert not satisfies(read_picture(render(other)), caption.spec)


def change(scene: Scene, first: Object) -> Scene:
    return replace(scene, objects=(first, *scene.objects[1:]))


def test_order_and_binding() -> None:
    right = read(RED_STAR, BLUE_SQUARE)
    assert satisfies(right, CAPTION)
    swapped_places = read(replace(RED_STAR, x=6), replace(BLUE_SQUARE, x=2))
    assert shows(swapped_places, CAPTION)
    assert not keeps_relation(swapped_places, CAPTION)
    assert not satisfies(swapped_places, CAPTION)
    assert satisfies(swapped_places, replace(CAPTION, relation=None))
    swapped_colours = read(replace(RED_STAR, colour="blue"), replace(BLUE_SQUARE, colour="red"))
    assert not satisfies(swapped_colours, CAPTION)
    assert shows_colours(swapped_colours, CAPTION)
    assert not shows_colours(read(RED_STAR), CAPTION)
    column = read(replace(RED_STAR, x=4, y=2), replace(BLUE_SQUARE, x=4, y=6))
    assert not satisfies(column, CAPTION)
    assert satisfies(column, replace(CAPTION, relation="above"))
    one_more = read(replace(RED_STAR, y=2), replace(BLUE_SQUARE, y=2), Object("star", "red", 4, 6))
    assert not satisfies(one_more, CAPTION)


def test_colours_that_are_not_named_are_free() -> None:
    spec = Spec((("star", None), ("square", "blue")), "white", "to the left of")
    assert satisfies(read(RED_STAR, BLUE_SQUARE), spec)
    assert not satisfies(read(RED_STAR, replace(BLUE_SQUARE, colour="red")), spec)


def test_the_same_shape_twice_is_told_apart_by_colour() -> None:
    spec = Spec((("star", "red"), ("star", "blue")), "white", "to the right of")
    red, blue = Object("star", "red", 6, 2), Object("star", "blue", 2, 2)
    assert satisfies(read(blue, red), spec)
    assert not satisfies(read(replace(blue, colour="red"), replace(red, colour="blue")), spec)


def test_blobs_and_specks() -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    assert read_picture(pixels) == Reading((), "white")
    pixels[30:34, 30:36] = (214, 39, 40)  # 24 pixels: too small
    assert read_picture(pixels).objects == ()
    pixels[10:40, 10:16] = (214, 39, 40)  # an L is no shape
    pixels[34:40, 10:40] = (214, 39, 40)
    (found,) = read_picture(pixels).objects
    assert (found.shape, found.colour) == (None, "red")


def test_noise_does_not_harm() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not satisfies(read_picture(noise), CAPTION)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", EDIT_TYPES)
def test_edits(kind: str, size: int) -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        edit = sample_edit(rng, kind, held_out=None)
        assert edit_succeeded(read_picture(render(edit.after, size)), edit)
        assert not edit_succeeded(read_picture(render(edit.before, size)), edit)


def test_what_an_edit_leaves_alone_stays_in_its_place() -> None:
    rng = np.random.default_rng(5)
    edit = next(e for e in iter(lambda: sample_edit(rng, "colour"), None) if len(e.after.objects) == 2)
    first, second = edit.after.objects
    moved = replace(edit.after, objects=(replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)))
    assert not edit_succeeded(read_picture(render(moved)), edit)


def test_what_is_added_may_be_anywhere() -> None:
    old, new = Object("star", "red", 2, 2), Object("square", "blue", 6, 2)
    edit = Edit("add a blue square", "add", Scene((old,)), Scene((old, new)))
    assert edit_succeeded(read(old, replace(new, y=6)), edit)
    assert not edit_succeeded(read(replace(old, y=4), new), edit)
    assert not edit_succeeded(read(old, replace(new, colour="red")), edit)
    assert not edit_succeeded(read(old, new, background="gray"), edit)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", ["brown", "ring"])
def test_something_new_is_read_as_well(name: str, size: int) -> None:
    world = WORLD.extended(name)
    rng = np.random.default_rng(6)
    for _ in range(200):
        scene = sample_scene(rng, "count", background=None, world=world, held_out=None)
        spec = Spec(tuple(thing.pair for thing in scene.objects), scene.background)
        pixels = render(scene, size)
        assert satisfies(read_picture(pixels, world=world), spec)
        # The fixed world does not know it.
        assert satisfies(read_picture(pixels), spec) == (name not in scene.objects[0].pair)
