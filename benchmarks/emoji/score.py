"""Scores a model on the world of emoji: what it draws, answers and edits.

True pictures are scored the same way: what the judge makes of them is the most that any model can have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..scoring import SHOWN, Asked, Questioner, Scored, asked_row, draw, generator, image_seed, row
from ..shapes.report import Score
from ..shapes.sheet import Tile
from .edits import EDIT_TYPES, Edit, sample_edit
from .judge import Rank, Verdict, judge, spec_of
from .names import names
from .questions import QUESTION_TYPES, Question, sample_question
from .sprites import emoji
from .text import CATEGORIES, Caption, Named, Spec, alone, sample_caption
from .world import CENTRE, Scene, Thing, render_batch

if TYPE_CHECKING:
    from PIL import Image

    from mobileo_mlx import MobileO

TASKS = ("draw", "ask", "edit")
COMPOSED = ("two", "position", "count")
NAMES = "names"  # the category of the emoji's own names, one after the other
HELD_OUT = "held out: "

# What draws captions and what makes edits, an image for each.
Draw = Callable[[Sequence[Caption], np.random.Generator], "list[Image.Image]"]
Change = Callable[[Sequence[Edit], np.random.Generator], "list[Image.Image]"]


@dataclass(frozen=True)
class _Drawing:
    caption: Caption
    image: Image.Image
    verdict: Verdict


def score_drawing(
    draw_all: Draw, rank: Rank, count: int, *, seed: int = 0, names_count: int | None = None
) -> Iterator[Scored]:
    """Draws `count` captions of each category, one image each, yielding a category at a time.

    Args:
        draw_all: such as `drawn_by` gives.
        rank: the classifier.
        count: of captions in each category.
        seed: of captions and of the images' noise.
        names_count: of names, in place of `count`; 0 for all.
    """
    drawings: dict[str, list[_Drawing]] = {}
    for name, captions in _captions(count, seed, names_count).items():
        images = draw_all(captions, generator(seed, "draw", name, "noise"))
        verdicts = judge(rank, [(one.spec, one.scene) for one in captions], images)
        drawings[name] = [_Drawing(*each) for each in zip(captions, images, verdicts, strict=True)]
        tiles = [Tile((one.image,), one.caption.text + _seen(one.verdict), one.verdict.right) for one in drawings[name]]
        rows = [row("draw", name, [one.verdict.right for one in drawings[name]])]
        yield Scored([*rows, *_aspects(name, drawings[name])], f"draw: {name}", tiles[:SHOWN])
    ordinary = [one for name, some in drawings.items() if not name.startswith(HELD_OUT) for one in some]
    yield Scored([row("draw", "(background)", [one.verdict.background for one in ordinary])], "", [])


def score_answers(model: MobileO, count: int, *, seed: int = 0) -> Iterator[Scored]:
    """Asks `count` questions of each type, and the same of a blank image, yielding a type at a time."""
    from PIL import Image

    samplers = {kind: partial(sample_question, kind=kind) for kind in QUESTION_TYPES}
    questioner = Questioner(model)
    for name, sample in {**samplers, "held out": partial(sample_question, held_out=True)}.items():
        rng = generator(seed, "ask", name)
        questions = [sample(rng) for _ in range(count)]
        pictures = render_batch([one.scene for one in questions])
        asked: list[Asked[Question]] = [
            questioner.ask(one, Image.fromarray(picture)) for one, picture in zip(questions, pictures, strict=True)
        ]
        yield Scored([asked_row(name, asked)], f"ask: {name}", [one.tile for one in asked[:SHOWN]])


def score_edits(change_all: Change, rank: Rank, count: int, *, seed: int = 0) -> Iterator[Scored]:
    """Makes `count` edits of each type, yielding a type at a time; `change_all` such as `edited_by` gives."""
    from PIL import Image

    samplers = {kind: partial(sample_edit, kind=kind) for kind in EDIT_TYPES}
    for name, sample in {**samplers, "held out": partial(sample_edit, held_out=True)}.items():
        rng = generator(seed, "edit", name)
        edits = [sample(rng) for _ in range(count)]
        images = change_all(edits, rng)
        verdicts = judge(rank, [(spec_of(one.after), one.after) for one in edits], images)
        befores = [Image.fromarray(picture) for picture in render_batch([one.before for one in edits])]
        tiles = [
            Tile((before, image), edit.text + _seen(verdict), verdict.right)
            for edit, before, image, verdict in zip(edits, befores, images, verdicts, strict=True)
        ]
        rows = [row("edit", name, [one.right for one in verdicts])]
        yield Scored(rows, f"edit: {name}", tiles[: SHOWN // 2])


def drawn_by(model: MobileO, options: dict[str, Any] | None = None) -> Draw:
    """A model's drawings; `options` for `MobileO.generate` in place of its defaults."""
    return lambda captions, rng: draw(model, [one.text for one in captions], rng, options or {})


def edited_by(model: MobileO, options: dict[str, Any] | None = None) -> Change:
    """A model's edits; `options` as in `drawn_by`."""
    from PIL import Image

    def change(edits: Sequence[Edit], rng: np.random.Generator) -> list[Image.Image]:
        befores = [Image.fromarray(picture) for picture in render_batch([one.before for one in edits])]
        return [
            model.edit(before, one.text, seed=image_seed(rng), **(options or {})).images[0]
            for before, one in zip(befores, edits, strict=True)
        ]

    return change


def true_pictures(scenes: Sequence[Scene], autoencoder: MobileO | None = None) -> list[Image.Image]:
    """What all drawings should look like; or the most that they can, as the autoencoder of a model gives it back."""
    from PIL import Image

    images = [Image.fromarray(picture) for picture in render_batch(scenes)]
    if autoencoder is None:
        return images
    from mobileo_mlx.latents import encode_latents

    parts = autoencoder.parts
    return [autoencoder.decode_latents(encode_latents(parts, image))[0] for image in images]


def _captions(count: int, seed: int, names_count: int | None) -> dict[str, list[Caption]]:
    order = generator(seed, "draw", NAMES).permutation(alone()).tolist()
    chosen = order if names_count == 0 else order[: names_count or count]
    captions = {NAMES: [_by_name(index) for index in chosen]}
    for held_out in (False, True):
        for category in COMPOSED if held_out else CATEGORIES:
            name = f"{HELD_OUT}{category}" if held_out else category
            rng = generator(seed, "draw", name)
            captions[name] = [sample_caption(rng, category, held_out=held_out) for _ in range(count)]
    return captions


def _by_name(index: int) -> Caption:
    """An emoji by its own name, on white."""
    name = names()[index][0]
    spec = Spec((Named(name.indices),))
    return Caption(name.phrase(), spec, Scene((Thing(index, *CENTRE),)), "single")


def _aspects(category: str, drawn: Sequence[_Drawing]) -> Iterator[Score]:
    """What is right about the drawings of a category, one thing at a time."""
    verdicts = [one.verdict for one in drawn]
    parts: dict[str, list[bool]] = {}
    if category in (NAMES, "single"):
        parts["top 1"] = [one.things for one in verdicts]
        parts["top 5"] = [one.ranks[0] < 5 for one in verdicts]
    if category == NAMES:
        for one in drawn:
            group = emoji(toned=True)[one.caption.scene.things[0].index].group
            parts.setdefault(f"top 1, {group}", []).append(one.verdict.things)
    if category == "size":
        parts["the size"] = [one.size for one in verdicts]
    if category == "tone":
        parts["the tone, hand right"] = [one.tone for one in verdicts if one.things]
    if category.endswith("count"):
        parts["the number"] = [one.number for one in verdicts]
    if category.endswith(("two", "position")):
        parts["both things"] = [one.things for one in verdicts]
        parts["each thing"] = [rank == 0 for one in verdicts for rank in one.ranks]
    if category.endswith("position"):
        # The question of order only arises where both things are there.
        parts["the relation, things right"] = [one.relation for one in verdicts if one.things]
    for name, some in parts.items():
        if some:
            yield row("draw", f"({category}: {name})", some)


def _seen(verdict: Verdict) -> str:
    """What was read instead, where a picture is wrong."""
    if verdict.right:
        return ""
    parts = ("background", "size", "number", "relation", "tone")
    wrong = [f"wrong {part}" for part in parts if not getattr(verdict, part)]
    things = [] if verdict.things else [", ".join(verdict.seen[:4])]
    return f"\n> {'; '.join([*things, *wrong, *([] if verdict.clean else ['not clean'])])}"
