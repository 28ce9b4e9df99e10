"""How much of what the bundled model `tiny` draws, answers and edits is right, as its scorer judges it."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shapes.edits import EDIT_TYPES, sample_edit
from benchmarks.shapes.questions import QUESTION_TYPES, sample_question
from benchmarks.shapes.scorer import edit_succeeded, read_picture, satisfies
from benchmarks.shapes.text import sample_caption
from benchmarks.shapes.world import CATEGORIES, render
from mobileo_mlx import MobileO


def drawn_right(model: MobileO, count: int, **options: Any) -> float:
    """The share of captions, of each category in turn, that the scorer reads in what is drawn."""
    rng = np.random.default_rng(1)
    right = 0
    for index in range(count):
        caption = sample_caption(rng, CATEGORIES[index % len(CATEGORIES)])
        image = model.generate(caption.text, seed=index, **options).images[0]
        right += satisfies(read_picture(np.asarray(image)), caption.spec)
    return right / count


def answered_right(model: MobileO, count: int) -> float:
    """The share of questions, of each type in turn, that are answered right."""
    rng = np.random.default_rng(2)
    right = 0
    for index in range(count):
        question = sample_question(rng, QUESTION_TYPES[index % len(QUESTION_TYPES)])
        answer = model.ask(Image.fromarray(render(question.scene)), question.text, max_tokens=48)
        right += answer.text in question.accepted
    return right / count


def edited_right(model: MobileO, count: int, **options: Any) -> float:
    """The share of edits, of each type in turn, after which all is as it should be."""
    rng = np.random.default_rng(3)
    right = 0
    for index in range(count):
        edit = sample_edit(rng, EDIT_TYPES[index % len(EDIT_TYPES)])
        after = model.edit(Image.fromarray(render(edit.before)), edit.text, seed=index, **options).images[0]
        right += edit_succeeded(read_picture(np.asarray(after)), edit)
    return right / count
