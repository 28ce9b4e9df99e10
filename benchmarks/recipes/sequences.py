"""Training batches of texts: captions, questions and edits as the token sequences that inference uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.prompts import ask_prompt, edit_prompt, encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import IM_END, Tokenizer

from .stages import Batch


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
    seen: list[Any]
    drawn: list[Any]

    def arrays(self, rows: np.ndarray | None = None) -> Batch:
        """Token ids, labels and mask, of some of the rows without needless padding, or of all."""
        if rows is None:
            return {"ids": self.ids, "mask": self.mask, "labels": self.labels}
        length = int(self.mask[rows].sum(axis=1).max())
        return {name: array[rows, :length] for name, array in self.arrays().items()}


def captions(tokenizer: Tokenizer, samples: Sequence[Any]) -> Sequences:
    """Prompts to draw from: samples with a `text` and its `scene`."""
    rows = [encode_prompt(tokenizer, generate_prompt(sample.text)) for sample in samples]
    return _padded(rows, _unlabelled(rows), [], [sample.scene for sample in samples])


def edits(tokenizer: Tokenizer, samples: Sequence[Any]) -> Sequences:
    """Instructions to change a scene: samples with a `text` and the scenes `before` and `after`."""
    rows = [encode_prompt(tokenizer, edit_prompt(sample.text)) for sample in samples]
    scenes = [sample.before for sample in samples], [sample.after for sample in samples]
    return _padded(rows, _unlabelled(rows), *scenes)


def questions(tokenizer: Tokenizer, samples: Sequence[Any]) -> Sequences:
    """Questions: samples with a `text`, its `answer` and the `scene` that it is about."""
    rows, labels = [], []
    for sample in samples:
        prompt = encode_prompt(tokenizer, ask_prompt(sample.text))
        answer = tokenizer.encode(sample.answer + IM_END)
        rows.append(prompt + answer)
        labels.append([IGNORED_LABEL] * len(prompt) + answer)
    return _padded(rows, labels, [sample.scene for sample in samples], [])


def _unlabelled(rows: Sequence[list[int]]) -> list[list[int]]:
    return [[IGNORED_LABEL] * len(row) for row in rows]


def _padded(rows: Sequence[list[int]], labels: Sequence[list[int]], seen: list[Any], drawn: list[Any]) -> Sequences:
    length = max(len(row) for row in rows)
    mask = np.array([[i < len(row) for i in range(length)] for row in rows])

    def filled(values: Sequence[list[int]], padding: int) -> np.ndarray:
        return np.array([row + [padding] * (length - len(row)) for row in values])

    return Sequences(filled(rows, 0), mask, filled(labels, IGNORED_LABEL), seen, drawn)
