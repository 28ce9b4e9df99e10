"""How the bundled model `tiny` was made: its training batches.

Captions, questions and edits become the token sequences that inference uses. Which kinds of questions are asked
changes in the course of the training.
"""

from __future__ import annotations

import numpy as np

from benchmarks.recipes.curriculum import Curriculum
from mobileo_mlx.tokenizer import Tokenizer

from ..edits import sample_edit
from ..questions import QUESTION_TYPES, sample_question
from ..text import sample_caption
from ..world import UNITS, Scene
from .tiny import GRID

# What has to find an object first is hard, so it is asked more often.
ALL_KINDS = (*QUESTION_TYPES, "colour", "presence", "presence", "relation", "relation", "relation", "where", "where")
# The kinds of questions up to a share of all steps: to find an object by its name takes some hundred steps of training
# where little else is asked, and is hardly trained at all by a mixture of all kinds. Relations take longest.
_PHASES = (
    (0.12, ("colour", "shape")),
    (0.24, ("colour", "shape", "presence", "count")),
    (0.5, ("where", "where", "relation", "colour")),
    (1.0, ALL_KINDS),
)
_ROWS, _COLUMNS = "ABCD", "EFGH"

CURRICULUM = Curriculum(sample_caption, sample_edit, sample_question, _PHASES)


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
