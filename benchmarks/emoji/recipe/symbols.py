"""How the bundled model `emoji` was made: what stands for its images until the vision tower is trained.

Each image token is a sum of the embeddings of words that say what is there: those of the emoji's name, its size and
skin tone, or the background's, and letters for its row and its column. The vision tower is trained towards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.tokenizer import Tokenizer

from ..names import names
from ..sprites import SIZES, emoji
from ..world import SIDE, Scene, Thing
from .networks import GRID

WORDS = 12  # of an image token, at most
COVERED = 0.4  # of a thing's side, from its centre: the rest is empty
_ROWS, _COLUMNS = "ABCD", "EFGH"  # which no text of this world has


class Symbols:
    """Makes the image tokens of scenes.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[Any, list[int]] = {}

    def __call__(self, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
        """Token "ids" (B, GRID * GRID, WORDS) int32 and their "weights", float32, 0 where there is no word."""
        ids = np.zeros((len(scenes), GRID * GRID, WORDS), np.int32)
        weights = np.zeros(ids.shape, np.float32)
        for i, scene in enumerate(scenes):
            for j, tokens in enumerate(self._cells(scene)):
                ids[i, j, : len(tokens)], weights[i, j, : len(tokens)] = tokens, len(tokens) ** -0.5
        return {"ids": ids, "weights": weights}

    def _cells(self, scene: Scene) -> list[list[int]]:
        side = SIDE // GRID
        cells = []
        for i in range(GRID * GRID):
            row, column = divmod(i, GRID)
            x, y = (column + 0.5) * side, (row + 0.5) * side
            covering = [
                thing for thing in scene.things if max(abs(x - thing.x), abs(y - thing.y)) < COVERED * SIZES[thing.size]
            ]
            said = self._said(covering[-1]) if covering else self._tokens(f" {scene.background}")
            cells.append([*said[: WORDS - 2], *self._tokens(_ROWS[row]), *self._tokens(_COLUMNS[column])])
        return cells

    def _said(self, thing: Thing) -> list[int]:
        each, called = emoji(toned=True)[thing.index], names().get(thing.index)
        noun = called[0].noun if called else each.name.lower()
        tone = "" if each.tone is None else f" {each.tone}"
        return self._tokens(f" {thing.size}{tone} {noun}")

    def _tokens(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)
        return self._known[text]


def symbol_features(model: Any, symbols: dict[str, mx.array]) -> mx.array:
    """The features of an ideal vision tower, (B, GRID * GRID, hidden_size), of what `Symbols` gives."""
    return (model.llm.embed_tokens(symbols["ids"]) * symbols["weights"][..., None]).sum(axis=2)
