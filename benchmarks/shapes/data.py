"""Files to train on: quadruplets of prompt, image, question and answer, and edits among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mobileo_mlx.atomic import atomic_folder
from mobileo_mlx.errors import OptionError

from .edits import Edit, sample_edit
from .questions import Question, questions_about
from .text import Caption, describe, sample_caption
from .world import WORLD, Scene, World, render

FILE = "quadruplets.jsonl"


@dataclass(frozen=True)
class Quadruplet:
    """One sample; the questions are about `scene`, which for an edit is the result."""

    prompt: str
    scene: Scene
    source: Scene | None
    questions: tuple[Question, ...]


def write_quadruplets(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    edits: float = 0.25,
    questions: int = 1,
    new: str | None = None,
    new_share: float = 0.5,
) -> Path:
    """Writes samples into a new folder, one JSON object a line, with the images beside them.

    The keys are `prompt` and `image`, then `question` and `answer`, or `qa`, a list of them, where a sample has more
    than one. An edit has `source_image` too, its prompt is the instruction, and `image` is the result.

    Args:
        folder: must be new or empty.
        count: of samples.
        seed: of everything.
        size: of the images, in pixels.
        edits: the share of edits.
        questions: for each sample, at most.
        new: something to train on, of `world.NEW_COLOURS` or `world.NEW_SHAPES`. The other samples are of the old
            world, so that nothing is forgotten.
        new_share: the share of samples that show and name what is new.

    Returns:
        the file of the samples.

    Raises:
        OptionError: a number is out of range, or `new` unknown.
        OutputError: the folder can't be written.
    """
    _check(count, questions, size, edits, new_share)
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        with (temporary / FILE).open("w", encoding="utf-8") as lines:
            samples = _samples(count, seed, edits=edits, questions=questions, new=new, new_share=new_share)
            for index, sample in enumerate(samples):
                record = _write_images(sample, temporary, f"{index:05d}", size)
                lines.write(json.dumps(record) + "\n")
    return Path(folder) / FILE


def write_pictures(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    edits: float = 0.0,
    new: str | None = None,
    new_share: float = 0.5,
) -> Path:
    """Writes pictures into a new folder, each with its caption in a text beside it, for `dataset build`.

    Of an edit there are `00003.png` without a text, `00003_edit.png`, the instruction in `00003_edit.txt`, and
    where it can be described a caption in `00003_edit.caption`.

    Args, errors: see `write_quadruplets`; pictures and texts are the same.

    Returns:
        the folder.
    """
    _check(count, 1, size, edits, new_share)
    with atomic_folder(folder) as temporary:
        samples = _samples(count, seed, edits=edits, questions=1, new=new, new_share=new_share)
        for index, sample in enumerate(samples):
            stem = f"{index:05d}"
            if sample.source is not None:
                _save(sample.source, temporary / f"{stem}.png", size)
                stem += "_edit"
            _save(sample.scene, temporary / f"{stem}.png", size)
            (temporary / f"{stem}.txt").write_text(sample.prompt + "\n", encoding="utf-8")
            if sample.source is not None and (caption := describe(sample.scene)) is not None:
                (temporary / f"{stem}.caption").write_text(caption + "\n", encoding="utf-8")
    return Path(folder)


def _check(count: int, questions: int, size: int, *shares: float) -> None:
    if count < 1 or questions < 1 or size < 16:
        raise OptionError("at least 1 sample, 1 question for each, and 16 pixels are needed; choose larger numbers.")
    if not all(0 <= share <= 1 for share in shares):
        raise OptionError("a share is a number from 0 to 1.")


def _samples(
    count: int, seed: int, *, edits: float, questions: int, new: str | None, new_share: float
) -> Iterator[Quadruplet]:
    extended = WORLD if new is None else WORLD.extended(new)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        is_edit = rng.random() < edits
        if new is not None and rng.random() < new_share:
            yield sample_quadruplet(rng, is_edit=is_edit, questions=questions, world=extended, about=new)
        else:
            yield sample_quadruplet(rng, is_edit=is_edit, questions=questions, review=new is not None)


def sample_quadruplet(
    rng: np.random.Generator,
    *,
    is_edit: bool = False,
    questions: int = 1,
    world: World = WORLD,
    about: str | None = None,
    review: bool = False,
) -> Quadruplet:
    """A sample for training.

    Args:
        rng: where all randomness comes from.
        is_edit: of an image, or a caption.
        questions: at most.
        world: the names to choose from.
        about: its prompt names that colour or shape, and its picture shows it.
        review: captions leave out colours, and name backgrounds, more often: what is seldom said is forgotten first.
    """
    sample = partial(sample_caption, uncoloured=0.5, named_background=0.5) if review else sample_caption
    while True:
        thing: Edit | Caption = sample_edit(rng, world=world) if is_edit else sample(rng, world=world)
        scene = thing.after if isinstance(thing, Edit) else thing.scene
        possible = questions_about(rng, scene, world=world)
        if about is not None:
            # An edit of another object, such as "remove the star", shows what is new without its name.
            shown = any(about in pair for pair in scene.pairs)
            if not shown or (not is_edit and about not in thing.text):
                continue
            possible = [question for question in possible if is_about(question, about)]
        if possible:
            break
    chosen = _some(rng, possible, questions)
    return Quadruplet(thing.text, scene, thing.before if isinstance(thing, Edit) else None, tuple(chosen))


def is_about(question: Question, name: str) -> bool:
    """Whether a question or its answer names a colour or shape; others can be answered without knowing it."""
    return name in question.text or name in question.answer


def _some(rng: np.random.Generator, questions: list[Question], count: int) -> list[Question]:
    order = rng.permutation(len(questions))[:count]
    return [questions[i] for i in order]


def _write_images(sample: Quadruplet, folder: Path, stem: str, size: int) -> dict[str, object]:
    """Writes the images of a sample and returns its line."""
    record: dict[str, object] = {"prompt": sample.prompt, "image": f"images/{stem}.png"}
    _save(sample.scene, folder / f"images/{stem}.png", size)
    if sample.source is not None:
        record["source_image"] = f"images/{stem}-source.png"
        _save(sample.source, folder / f"images/{stem}-source.png", size)
    qa = [{"question": question.text, "answer": question.answer} for question in sample.questions]
    return record | (qa[0] if len(qa) == 1 else {"qa": qa})


def _save(scene: Scene, path: Path, size: int) -> None:
    from PIL import Image

    Image.fromarray(render(scene, size)).save(path)
