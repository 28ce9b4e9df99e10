"""What a small world's stages train on: captions, edits and questions, drawn at random, as token sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobileo_mlx.tokenizer import Tokenizer

from . import sequences
from .sequences import Sequences


@dataclass(frozen=True)
class Curriculum:
    """Samples of one world.

    Attributes:
        sample_caption, sample_edit: of a random generator, see `sequences.captions` and `sequences.edits`.
        sample_question: of a random generator and a kind, see `sequences.questions`.
        phases: the kinds of questions up to a share of all steps, the last of them 1; a kind that stands twice in a
            phase is asked twice as often.
    """

    sample_caption: Callable[[np.random.Generator], Any]
    sample_edit: Callable[[np.random.Generator], Any]
    sample_question: Callable[[np.random.Generator, str], Any]
    phases: Sequence[tuple[float, Sequence[str]]]

    def captions(self, rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
        """Prompts to draw from."""
        return sequences.captions(tokenizer, [self.sample_caption(rng) for _ in range(size)])

    def edits(self, rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
        """Instructions to change a scene."""
        return sequences.edits(tokenizer, [self.sample_edit(rng) for _ in range(size)])

    def kinds_at(self, progress: float) -> Sequence[str]:
        """The kinds of questions after a share of all steps, from 0 to 1."""
        return next(kinds for until, kinds in self.phases if progress <= until)

    def questions(self, rng: np.random.Generator, tokenizer: Tokenizer, size: int, progress: float = 1) -> Sequences:
        """Questions with their answers, of the kinds that are asked after a share of all steps."""
        kinds = self.kinds_at(progress)
        samples = [self.sample_question(rng, kinds[int(rng.integers(len(kinds)))]) for _ in range(size)]
        return sequences.questions(tokenizer, samples)
