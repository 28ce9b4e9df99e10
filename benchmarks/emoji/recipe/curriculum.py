"""How the bundled model `emoji` was made: its captions, edits and questions as token sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.recipes import sequences
from benchmarks.recipes.sequences import Sequences
from benchmarks.shapes.world import pick
from mobileo_mlx.tokenizer import Tokenizer

from ..edits import sample_edit
from ..questions import QUESTION_TYPES, sample_question
from ..text import sample_caption

# What asks for one of a thousand names is hard, so it is asked more often.
ALL_KINDS = (*QUESTION_TYPES, "name", "name", "name", "name", "kind", "presence", "presence", "place", "place")
# The kinds of questions up to a share of all steps: first what needs the names.
_CURRICULUM = ((0.4, ("name", "name", "name", "kind", "background", "place")), (1.0, ALL_KINDS))


def captions(rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
    """Prompts to draw from."""
    return sequences.captions(tokenizer, [sample_caption(rng) for _ in range(size)])


def edits(rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
    """Instructions to change a scene."""
    return sequences.edits(tokenizer, [sample_edit(rng) for _ in range(size)])


def kinds_at(progress: float) -> Sequence[str]:
    """The kinds of questions after a share of all steps, from 0 to 1."""
    return next(kinds for until, kinds in _CURRICULUM if progress <= until)


def questions(rng: np.random.Generator, tokenizer: Tokenizer, size: int, kinds: Sequence[str] = ALL_KINDS) -> Sequences:
    """Questions with their answers."""
    return sequences.questions(tokenizer, [sample_question(rng, pick(rng, kinds)) for _ in range(size)])
