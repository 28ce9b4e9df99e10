"""How the bundled model `tiny` was made: its training batches.

Captions, questions and edits become the token sequences that inference uses. Which kinds of questions are asked
changes in the course of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.prompts import ask_prompt, edit_prompt, encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import IM_END, Tokenizer

from ..edits import sample_edit
from ..questions import QUESTION_TYPES, sample_question
from ..text import sample_caption
from ..world import UNITS, Scene, pick
from .tiny import GRID

# What has to find an object first is hard, so it is asked more often.
ALL_KINDS = (*QUESTION_TYPES, "colour", "presence", "presence", "relation", "relation", "relation", "where", "where")
# The kinds of questions up to a share of all steps: to find an object by its name takes some hundred steps of training
# where little else is asked, and is hardly trained at all by a mixture of all kinds. Relations take longest.
_CURRICULUM = (
    (0.12, ("colour", "shape")),
    (0.24, ("colour", "shape", "presence", "count")),
    (0.5, ("where", "where", "relation", "colour")),
    (1.0, ALL_KINDS),
)
_ROWS, _COLUMNS = "ABCD", "EFGH"


@dataclass(frozen=True)
class Sequences:
    """A batch of prompts, padded on the right, with an image in each or in none.

    Attributes:
        ids: (B, T) int, `IMAGE_TOKEN_INDEX` in the place of the image.
        mask: (B, T) bool, False where a row is padded.
        labels: (B, T) int, the ids of answers; `IGNORED_LABEL` elsewhere.
        seen: the scenes that stand in the image's place, where there is one.
        drawn: the scenes that are to be drawn, where there is something to draw.
    """

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    seen: list[Scene]
    drawn: list[Scene]


def captions(rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
    """Prompts to draw from."""
    samples = [sample_caption(rng) for _ in range(size)]
    rows = [encode_prompt(tokenizer, generate_prompt(sample.text)) for sample in samples]
    return _padded(rows, [[IGNORED_LABEL] * len(row) for row in rows], [], [sample.scene for sample in samples])


def edits(rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
    """Instructions to change a scene."""
    samples = [sample_edit(rng) for _ in range(size)]
    rows = [encode_prompt(tokenizer, edit_prompt(sample.text)) for sample in samples]
    return _padded(
        rows,
        [[IGNORED_LABEL] * len(row) for row in rows],
        [sample.before for sample in samples],
        [sample.after for sample in samples],
    )


def kinds_at(progress: float) -> Sequence[str]:
    """The kinds of questions after a share of all steps, from 0 to 1."""
    return next(kinds for until, kinds in _CURRICULUM if progress <= until)


def questions(rng: np.random.Generator, tokenizer: Tokenizer, size: int, kinds: Sequence[str] = ALL_KINDS) -> Sequences:
    """Questions with their answers."""
    rows, labels, scenes = [], [], []
    for _ in range(size):
        sample = sample_question(rng, pick(rng, kinds))
        prompt = encode_prompt(tokenizer, ask_prompt(sample.text))
        answer = tokenizer.encode(sample.answer + IM_END)
        rows.append(prompt + answer)
        labels.append([IGNORED_LABEL] * len(prompt) + answer)
        scenes.append(sample.scene)
    return _padded(rows, labels, scenes, [])


def symbols(scene: Scene, tokenizer: Tokenizer) -> np.ndarray:
    """Token ids that describe each cell of a scene, (GRID * GRID, 4): colour, shape, row and column.

    Where there is no object, the ground's name stands for colour and shape. Rows and columns are letters that no text
    of the world has: with them relations can be answered, and hardly without.
    """

    def word(text: str) -> int:
        (token,) = tokenizer.encode(text)
        return token

    grid = np.full((GRID, GRID, 4), word(f" {scene.background}"))
    grid[..., 2] = np.array([word(letter) for letter in _ROWS])[:, None]
    grid[..., 3] = np.array([word(letter) for letter in _COLUMNS])
    cells = UNITS // GRID  # eighths of the side in a token
    for thing in scene.objects:
        column, row = thing.x // cells, thing.y // cells
        grid[row - 1 : row + 1, column - 1 : column + 1, :2] = word(f" {thing.colour}"), word(f" {thing.shape}")
    return grid.reshape(GRID * GRID, 4)


def _padded(rows: Sequence[list[int]], labels: Sequence[list[int]], seen: list[Scene], drawn: list[Scene]) -> Sequences:
    length = max(len(row) for row in rows)
    mask = np.array([[i < len(row) for i in range(length)] for row in rows])

    def filled(values: Sequence[list[int]], padding: int) -> np.ndarray:
        return np.array([row + [padding] * (length - len(row)) for row in values])

    return Sequences(filled(rows, 0), mask, filled(labels, IGNORED_LABEL), seen, drawn)
