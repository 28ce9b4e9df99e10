"""Edits: an instruction, and a scene before and after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .text import a, noun_phrase
from .world import BACKGROUNDS, WORLD, Object, Scene, World, pick, sample_scene

EDIT_TYPES = ("colour", "shape", "remove", "add", "background")


@dataclass(frozen=True)
class Edit:
    """`kind` is one of `EDIT_TYPES`. What an edit leaves alone is the same object before and after it."""

    text: str
    kind: str
    before: Scene
    after: Scene


def sample_edit(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    held_out: bool | None = False,
    world: World = WORLD,
) -> Edit:
    """An edit of a kind, by default any; with `held_out` a held-out pair is there before or after."""
    kind = pick(rng, EDIT_TYPES) if kind is None else kind
    categories, weights = zip(*_SCENES_TO_EDIT[kind].items(), strict=True)
    while True:
        before = sample_scene(
            rng,
            str(rng.choice(categories, p=weights)),
            background=None if rng.random() < 0.4 else "white",
            distinct_shapes=True,
            held_out=None,
            world=world,
        )
        change = _change(rng, kind, before, world)
        if change is not None and world.allows(before.pairs | change[1].pairs, held_out):
            return Edit(change[0], kind, before, change[1])


_SCENES_TO_EDIT: dict[str, dict[str, float]] = {
    "colour": {"single": 0.4, "position": 0.6},
    "shape": {"single": 0.4, "position": 0.6},
    "remove": {"position": 1.0},
    "add": {"single": 0.8, "position": 0.2},
    "background": {"single": 0.3, "position": 0.5, "count": 0.2},
}


def _change(rng: np.random.Generator, kind: str, scene: Scene, world: World) -> tuple[str, Scene] | None:
    """An instruction and the changed scene, or None where this random choice changes nothing or can't be made."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    shape, colour = pick(rng, world.pairs)
    shape_is_new = not any(other.shape == shape for other in scene.objects)
    if kind == "colour" and colour != thing.colour:
        return f"make the {thing.shape} {colour}", _with(scene, index, replace(thing, colour=colour))
    if kind == "shape" and shape_is_new:
        return f"change the {thing.shape} into {a(shape)}", _with(scene, index, replace(thing, shape=shape))
    if kind == "remove":
        return f"remove the {thing.shape}", _with(scene, index)
    if kind == "add" and shape_is_new and (place := free_place(scene)) is not None:
        added = Object(shape, colour, *place)
        return f"add {a(noun_phrase(shape, colour))}", replace(scene, objects=(*scene.objects, added))
    if kind == "background" and (background := pick(rng, BACKGROUNDS)) != scene.background:
        return f"change the background to {background}", replace(scene, background=background)
    return None


def _with(scene: Scene, index: int, *things: Object) -> Scene:
    return replace(scene, objects=scene.objects[:index] + things + scene.objects[index + 1 :])


def free_place(scene: Scene) -> tuple[int, int] | None:
    """Where an object is added: across from a single one; in the middle of the side that a pair leaves free."""
    xs, ys = {thing.x for thing in scene.objects}, {thing.y for thing in scene.objects}
    x, y = min(xs), min(ys)
    if len(xs) == 1 and x != 4:
        return (8 - x, y if len(ys) == 1 else 4)
    if len(ys) == 1 and y != 4:
        return (x if len(xs) == 1 else 4, 8 - y)
    return None
