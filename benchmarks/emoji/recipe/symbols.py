"""How the bundled model `emoji` was made: what stands for its images until the vision tower is trained.

Each image token is a sum of the embeddings of words that say what is there: those of the emoji's name, its size and
skin tone, or the background's, and letters for its row and its column. The vision tower is trained towards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
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

    def kinds(self, scenes: Sequence[Scene]) -> np.ndarray:
        """The emoji of each image token, (B, GRID * GRID) int32, those of a name as the first of them; -1 for none."""
        first = _first_of_its_name()
        found = [[_covering(scene, i) for i in range(GRID * GRID)] for scene in scenes]
        return np.array([[first[thing.index] if thing else -1 for thing in row] for row in found], np.int32)

    def directions(self, model: Any) -> mx.array:
        """What each of `emoji(toned=True)` adds to features by its name, less the mean, in length 1, (N, hidden)."""
        nouns = [self._tokens(f" {_noun(index)}") for index in range(len(emoji(toned=True)))]
        sums = mx.stack([model.llm.embed_tokens(mx.array(tokens)).sum(axis=0) for tokens in nouns])
        sums = sums - sums.mean(axis=0)
        return sums / mx.linalg.norm(sums, axis=-1, keepdims=True)

    def _cells(self, scene: Scene) -> list[list[int]]:
        cells = []
        for i in range(GRID * GRID):
            thing = _covering(scene, i)
            said = self._said(thing) if thing else self._tokens(f" {scene.background}")
            row, column = divmod(i, GRID)
            cells.append([*said[: WORDS - 2], *self._tokens(_ROWS[row]), *self._tokens(_COLUMNS[column])])
        return cells

    def _said(self, thing: Thing) -> list[int]:
        tone = emoji(toned=True)[thing.index].tone
        return self._tokens(f" {thing.size}{'' if tone is None else f' {tone}'} {_noun(thing.index)}")

    def _tokens(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)
        return self._known[text]


def _covering(scene: Scene, token: int) -> Thing | None:
    """The last of the things of which an image token shows more than the edge."""
    side = SIDE // GRID
    row, column = divmod(token, GRID)
    x, y = (column + 0.5) * side, (row + 0.5) * side
    for thing in reversed(scene.things):
        if max(abs(x - thing.x), abs(y - thing.y)) < COVERED * SIZES[thing.size]:
            return thing
    return None


def _noun(index: int) -> str:
    """What an emoji is called."""
    called = names().get(index)
    return called[0].noun if called else emoji(toned=True)[index].name.lower()


@cache
def _first_of_its_name() -> list[int]:
    first: dict[str, int] = {}
    return [first.setdefault(_noun(index), index) for index in range(len(emoji(toned=True)))]


def symbol_features(model: Any, symbols: dict[str, mx.array]) -> mx.array:
    """The features of an ideal vision tower, (B, GRID * GRID, hidden_size), of what `Symbols` gives."""
    return (model.llm.embed_tokens(symbols["ids"]) * symbols["weights"][..., None]).sum(axis=2)
