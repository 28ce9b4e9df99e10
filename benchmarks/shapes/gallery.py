"""True pictures to look at: every shape, colour and ground, and samples of all texts with the scorer's verdict."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .edits import EDIT_TYPES, Edit, sample_edit
from .questions import QUESTION_TYPES, sample_question
from .scorer import edit_succeeded, read_picture, satisfies
from .sheet import Tile
from .text import Spec, sample_caption
from .world import BACKGROUNDS, CATEGORIES, WORLD, Object, Scene, render

_COLUMNS = 8


def gallery(seed: int = 0, size: int = 128, new: str | None = None) -> list[tuple[str, list[Tile]]]:
    """The rows of a contact sheet; every frame is green unless the scorer is wrong.

    Raises:
        OptionError: `new` is not something new that can be drawn.
    """
    world = WORLD if new is None else WORLD.extended(new)
    rng = np.random.default_rng(seed)

    def picture(scene: Scene) -> Image.Image:
        return Image.fromarray(render(scene, size))

    def drawn(scene: Scene, spec: Spec, text: str) -> Tile:
        right = satisfies(read_picture(render(scene, size), world=world), spec)
        return Tile((picture(scene),), text, right)

    def single(shape: str, colour: str, background: str, text: str) -> Tile:
        return drawn(Scene((Object(shape, colour, 4, 4),), background), Spec(((shape, colour),), background), text)

    def changed(edit: Edit) -> Tile:
        right = edit_succeeded(read_picture(render(edit.after, size), world=world), edit)
        return Tile((picture(edit.before), picture(edit.after)), edit.text, right)

    rows = [
        ("shapes", [single(shape, "blue", "white", shape) for shape in world.shapes]),
        ("colours", [single("circle", colour, "white", colour) for colour in world.colours]),
        ("backgrounds", [single("star", "pink", background, background) for background in BACKGROUNDS]),
    ]
    for category in CATEGORIES:
        captions = [sample_caption(rng, category, world=world) for _ in range(_COLUMNS)]
        rows.append((category, [drawn(one.scene, one.spec, one.text) for one in captions]))
    questions = [sample_question(rng, kind, world=world) for kind in QUESTION_TYPES]
    rows.append(("questions", [Tile((picture(one.scene),), f"{one.text}\n> {one.answer}") for one in questions]))
    edits = [sample_edit(rng, kind, world=world) for kind in (*EDIT_TYPES, "colour", "shape", "add")]
    for start in range(0, len(edits), _COLUMNS // 2):
        rows.append(("edits", [changed(one) for one in edits[start : start + _COLUMNS // 2]]))
    return rows
