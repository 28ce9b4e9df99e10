"""Scores a model on the shapes world through its public functions: what it draws, answers and edits."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .data import is_about
from .edits import EDIT_TYPES, sample_edit
from .questions import QUESTION_TYPES, Question, sample_question
from .report import Score, most_frequent
from .scorer import Reading, edit_succeeded, keeps_relation, read_picture, satisfies, shows, shows_colours
from .sheet import Tile
from .text import Caption, sample_caption
from .world import WORLD, World, render

if TYPE_CHECKING:
    from PIL import Image

    from mobileo_mlx import MobileO

_T = TypeVar("_T")

TASKS = ("draw", "ask", "edit")
BATCH = 16  # drawings at once, of the same prompt
MAX_TOKENS = 48  # the longest description has fewer words
SHOWN = 8  # samples of each row on the contact sheet: the first ones, whatever their verdicts
_BLANK = (128, 128, 128)

# The groups in which questions are often scored together.
QUESTION_GROUPS = {
    "attributes, counts, presence": ("colour", "shape", "background", "count", "presence"),
    "relations": ("relation", "where"),
}


@dataclass(frozen=True)
class Scored:
    """Rows of a category, and its first samples for a contact sheet."""

    rows: list[Score]
    label: str
    tiles: list[Tile]


@dataclass(frozen=True)
class _Drawing:
    caption: Caption
    image: Image.Image
    reading: Reading

    @property
    def right(self) -> bool:
        return satisfies(self.reading, self.caption.spec)


@dataclass(frozen=True)
class _Asked:
    question: Question
    image: Image.Image
    answer: str
    blank_answer: str

    @property
    def right(self) -> bool:
        return self.answer in self.question.accepted

    @property
    def right_on_blank(self) -> bool:
        return self.blank_answer in self.question.accepted


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
        rng = _generator(seed, "draw", name)
        captions = [sample(rng) for _ in range(count)]
        images = _draw(model, captions, rng, options or {})
        drawings[name] = [
            _Drawing(caption, image, read_picture(np.asarray(image.convert("RGB")), world=world))
            for caption, image in zip(captions, images, strict=True)
        ]
        tiles = [Tile((one.image,), f"{one.caption.text}{_seen(one)}", one.right) for one in drawings[name][:SHOWN]]
        yield Scored([_row("draw", name, [one.right for one in drawings[name]])], f"draw: {name}", tiles)
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
    blank = Image.new("RGB", (side, side), _BLANK)
    # A blank image has no answer of its own: each question is asked of it once.
    on_blank: dict[str, str] = {}
    asked: dict[str, list[_Asked]] = {}
    for name, sample in _questions(new).items():
        rng = _generator(seed, "ask", name)
        asked[name] = []
        for _ in range(count):
            question = sample(rng)
            image = Image.fromarray(render(question.scene, side))
            if question.text not in on_blank:
                on_blank[question.text] = _answer(model, blank, question.text)
            answer = _answer(model, image, question.text)
            asked[name].append(_Asked(question, image, answer, on_blank[question.text]))
        tiles = [Tile((one.image,), f"{one.question.text}\n> {one.answer}", one.right) for one in asked[name][:SHOWN]]
        yield Scored([_asked_row(name, asked[name])], f"ask: {name}", tiles)
    groups = {name: [one for kind in kinds for one in asked[kind]] for name, kinds in QUESTION_GROUPS.items()}
    yield Scored([_asked_row(name, some) for name, some in groups.items()], "", [])


def score_edits(
    model: MobileO, count: int, *, seed: int = 0, options: dict[str, Any] | None = None
) -> Iterator[Scored]:
    """Makes `count` edits of each type, yielding a type at a time; `options` as in `score_drawing`."""
    from PIL import Image

    side = model.default_size[0]
    for kind in EDIT_TYPES:
        rng = _generator(seed, "edit", kind)
        verdicts: list[bool] = []
        tiles: list[Tile] = []
        for _ in range(count):
            edit = sample_edit(rng, kind)
            before = Image.fromarray(render(edit.before, side))
            after = model.edit(before, edit.text, seed=_image_seed(rng), **(options or {})).images[0]
            verdicts.append(edit_succeeded(read_picture(np.asarray(after.convert("RGB"))), edit))
            if len(tiles) < SHOWN // 2:
                tiles.append(Tile((before, after), edit.text, verdicts[-1]))
        yield Scored([_row("edit", kind, verdicts)], f"edit: {kind}", tiles)


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


def _draw(
    model: MobileO, captions: Sequence[Caption], rng: np.random.Generator, options: dict[str, Any]
) -> list[Image.Image]:
    """One image of each caption; equal captions share batches, each with a seed of its own."""
    seeds = [_image_seed(rng) for _ in captions]
    places: dict[str, list[int]] = {}
    for index, caption in enumerate(captions):
        places.setdefault(caption.text, []).append(index)
    images: dict[int, Image.Image] = {}
    for text, indices in places.items():
        for start in range(0, len(indices), BATCH):
            some = indices[start : start + BATCH]
            result = model.generate(text, seed=[seeds[i] for i in some], **options)
            images.update(zip(some, result.images, strict=True))
    return [images[i] for i in range(len(captions))]


def _answer(model: MobileO, image: Image.Image, question: str) -> str:
    return model.ask(image, question, max_tokens=MAX_TOKENS).text.lower().strip().rstrip(".")


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
            yield _row("draw", name, verdicts)


def _seen(one: _Drawing) -> str:
    """What was read instead, where a drawing is wrong."""
    if one.right:
        return ""
    things = [f"{found.colour} {found.shape or '?'}" for found in one.reading.objects[:4]]
    return f"\n> {', '.join(things) or 'nothing'}; {one.reading.background}"


def _row(task: str, name: str, verdicts: Sequence[bool]) -> Score:
    return Score(task, name, sum(verdicts), len(verdicts))


def _asked_row(name: str, asked: Sequence[_Asked]) -> Score:
    return Score(
        "ask",
        name,
        right=sum(one.right for one in asked),
        total=len(asked),
        blank=sum(one.right_on_blank for one in asked),
        prior=most_frequent([one.question.answer for one in asked]),
    )


def _generator(seed: int, *names: str) -> np.random.Generator:
    """Randomness of a category, the same whatever other categories are scored."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _image_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))
