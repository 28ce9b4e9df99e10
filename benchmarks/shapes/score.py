"""Scores a model on the shapes world through its public functions: what it draws, answers and edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..scoring import SHOWN, Asked, Questioner, Scored, asked_row, draw, generator, image_seed, row
from .data import is_about
from .edits import EDIT_TYPES, sample_edit
from .questions import QUESTION_TYPES, Question, sample_question
from .report import Score
from .scorer import Reading, edit_succeeded, keeps_relation, read_picture, satisfies, shows, shows_colours
from .sheet import Tile
from .text import Caption, sample_caption
from .world import WORLD, World, render

if TYPE_CHECKING:
    from PIL import Image

    from mobileo_mlx import MobileO

_T = TypeVar("_T")

TASKS = ("draw", "ask", "edit")

# The groups in which questions are often scored together.
QUESTION_GROUPS = {
    "attributes, counts, presence": ("colour", "shape", "background", "count", "presence"),
    "relations": ("relation", "where"),
}


@dataclass(frozen=True)
class _Drawing:
    caption: Caption
    image: Image.Image
    reading: Reading

    @property
    def right(self) -> bool:
        return satisfies(self.reading, self.caption.spec)


def score_drawing(
    model: MobileO, count: int, *, seed: int = 0, new: str | None = None, options: dict[str, Any] | None = None
) -> Iterator[Scored]:
    """Draws `count` captions of each category, one image each, yielding a category at a time.

    Args:
        model: a loaded model.
        count: of captions in each category.
        seed: of captions and of the images' noise.
        new: also draw captions that name this, of `world.NEW_COLOURS` or `world.NEW_SHAPES`.
        options: for `MobileO.generate`, in place of its defaults.
    """
    drawings: dict[str, list[_Drawing]] = {}
    for name, sample in caption_samplers(new).items():
        world = _world(new if name == new else None)
        rng = generator(seed, "draw", name)
        captions = [sample(rng) for _ in range(count)]
        images = draw(model, [caption.text for caption in captions], rng, options or {})
        drawings[name] = [
            _Drawing(caption, image, read_picture(np.asarray(image.convert("RGB")), world=world))
            for caption, image in zip(captions, images, strict=True)
        ]
        tiles = [Tile((one.image,), f"{one.caption.text}{_seen(one)}", one.right) for one in drawings[name][:SHOWN]]
        yield Scored([row("draw", name, [one.right for one in drawings[name]])], f"draw: {name}", tiles)
    ordinary = [one for name, some in drawings.items() if name not in (new, "held-out pairs") for one in some]
    yield Scored(list(_aspects(ordinary)), "", [])


def score_answers(model: MobileO, count: int, *, seed: int = 0, new: str | None = None) -> Iterator[Scored]:
    """Asks `count` questions of each type, and the same of a blank image, yielding a type at a time.

    Args:
        model: a loaded model.
        count: of questions of each type.
        seed: of questions and images.
        new: also ask questions that name this, or whose answer it is.
    """
    from PIL import Image

    side = model.default_size[0]
    questioner = Questioner(model)
    asked: dict[str, list[Asked[Question]]] = {}
    for name, sample in _questions(new).items():
        rng = generator(seed, "ask", name)
        questions = [sample(rng) for _ in range(count)]
        asked[name] = [questioner.ask(one, Image.fromarray(render(one.scene, side))) for one in questions]
        tiles = [one.tile for one in asked[name][:SHOWN]]
        yield Scored([asked_row(name, asked[name])], f"ask: {name}", tiles)
    groups = {name: [one for kind in kinds for one in asked[kind]] for name, kinds in QUESTION_GROUPS.items()}
    yield Scored([asked_row(name, some) for name, some in groups.items()], "", [])


def score_edits(
    model: MobileO, count: int, *, seed: int = 0, options: dict[str, Any] | None = None
) -> Iterator[Scored]:
    """Makes `count` edits of each type, yielding a type at a time; `options` as in `score_drawing`."""
    from PIL import Image

    side = model.default_size[0]
    for kind in EDIT_TYPES:
        rng = generator(seed, "edit", kind)
        verdicts: list[bool] = []
        tiles: list[Tile] = []
        for _ in range(count):
            edit = sample_edit(rng, kind)
            before = Image.fromarray(render(edit.before, side))
            after = model.edit(before, edit.text, seed=image_seed(rng), **(options or {})).images[0]
            verdicts.append(edit_succeeded(read_picture(np.asarray(after.convert("RGB"))), edit))
            if len(tiles) < SHOWN // 2:
                tiles.append(Tile((before, after), edit.text, verdicts[-1]))
        yield Scored([row("edit", kind, verdicts)], f"edit: {kind}", tiles)


def _world(new: str | None) -> World:
    return WORLD if new is None else WORLD.extended(new)


def caption_samplers(new: str | None = None) -> dict[str, Callable[[np.random.Generator], Caption]]:
    samplers: dict[str, Callable[[np.random.Generator], Caption]] = {
        "single object": lambda rng: sample_caption(rng, "single", coloured=False),
        "colours": lambda rng: sample_caption(rng, "single", coloured=True),
        "counting": lambda rng: sample_caption(rng, "count"),
        "two objects": lambda rng: sample_caption(rng, "two", coloured=False),
        "attribute binding": lambda rng: sample_caption(rng, "two", coloured=True),
        "position": lambda rng: sample_caption(rng, "position"),
        "background": lambda rng: sample_caption(rng, named_background=1.0),
        "held-out pairs": lambda rng: sample_caption(rng, held_out=True),
    }
    if new is not None:
        world = _world(new)
        samplers[new] = lambda rng: _until(lambda: sample_caption(rng, world=world), lambda c: new in c.text)
    return samplers


def _questions(new: str | None) -> dict[str, Callable[[np.random.Generator], Question]]:
    def of_kind(kind: str) -> Callable[[np.random.Generator], Question]:
        return lambda rng: sample_question(rng, kind)

    samplers = {kind: of_kind(kind) for kind in QUESTION_TYPES}
    samplers["held-out pairs"] = lambda rng: sample_question(rng, held_out=True)
    if new is not None:
        world = _world(new)
        samplers[new] = lambda rng: _until(lambda: sample_question(rng, world=world), lambda q: is_about(q, new))
    return samplers


def _until(sample: Callable[[], _T], accept: Callable[[_T], bool]) -> _T:
    while not accept(value := sample()):
        pass
    return value


def _aspects(drawn: Sequence[_Drawing]) -> Iterator[Score]:
    """What is right about the ordinary drawings, one thing at a time."""
    coloured = [one for one in drawn if all(colour is not None for _, colour in one.caption.spec.objects)]
    # The question of order only arises where both objects are there.
    related = [one for one in drawn if one.caption.spec.relation is not None and shows(one.reading, one.caption.spec)]
    parts = {
        "(colours alone)": [shows_colours(one.reading, one.caption.spec) for one in coloured],
        "(background alone)": [one.reading.background == one.caption.spec.background for one in drawn],
        "(relation, objects right)": [keeps_relation(one.reading, one.caption.spec) for one in related],
    }
    for name, verdicts in parts.items():
        if verdicts:
            yield row("draw", name, verdicts)


def _seen(one: _Drawing) -> str:
    """What was read instead, where a drawing is wrong."""
    if one.right:
        return ""
    things = [f"{found.colour} {found.shape or '?'}" for found in one.reading.objects[:4]]
    return f"\n> {', '.join(things) or 'nothing'}; {one.reading.background}"
