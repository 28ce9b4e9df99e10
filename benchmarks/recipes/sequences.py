"""Training batches of texts: captions, questions and edits as the token sequences that inference uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX, ask_prompt, edit_prompt, encode_prompt, generate_prompt
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
        """Some of the rows, or all, as a loss takes them; their shapes are few, so that it can be compiled.

        Returns:
            "ids" (B, T) int32, 0 for padding, "mask" (B, T) bool; where there is an image, its "place", the same in
            all rows; where there are answers, the "row" and "column" that each of their ids is predicted from, the
            "answer" itself and its "weight", 0 for what fills up, (N,) each.
        """
        rows = np.arange(len(self.ids)) if rows is None else rows
        width = _rounded(int(self.mask[rows].sum(axis=1).max()), 8)
        ids, mask, labels = (
            np.pad(array[rows, :width], ((0, 0), (0, max(0, width - array.shape[1]))), constant_values=padding)
            for array, padding in ((self.ids, 0), (self.mask, False), (self.labels, IGNORED_LABEL))
        )
        batch: Batch = {"ids": np.maximum(ids, 0).astype(np.int32), "mask": mask}
        if self.seen:
            batch["place"] = int(np.argmax(ids[0] == IMAGE_TOKEN_INDEX))
            if not ((ids == IMAGE_TOKEN_INDEX).argmax(axis=1) == batch["place"]).all():
                raise ValueError("the images stand in different places")
        row, column = np.nonzero(labels != IGNORED_LABEL)
        if len(row):
            answers = (row, column - 1, labels[row, column])
            missing = _rounded(len(row), 32) - len(row)
            for name, array in zip(("row", "column", "answer"), answers, strict=True):
                batch[name] = np.pad(array, (0, missing)).astype(np.int32)
            batch["weight"] = np.pad(np.ones(len(row), np.float32), (0, missing))
        return batch


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


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
