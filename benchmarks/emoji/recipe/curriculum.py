"""How the bundled model `emoji` was made: its captions, edits and questions as token sequences."""

from __future__ import annotations

import numpy as np

from benchmarks.recipes import sequences
from benchmarks.recipes.sequences import Sequences
from mobileo_mlx.tokenizer import Tokenizer

from ..text import sample_caption


def captions(rng: np.random.Generator, tokenizer: Tokenizer, size: int) -> Sequences:
    """Prompts to draw from."""
    return sequences.captions(tokenizer, [sample_caption(rng) for _ in range(size)])
