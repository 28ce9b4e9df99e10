"""How the bundled model `tiny` was made: what stands for its images until the vision tower is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.tokenizer import Tokenizer

from ..world import Scene
from .curriculum import symbols


def symbol_features(model: Any, symbol_ids: mx.array) -> mx.array:
    """The features of an ideal vision tower, (B, N, hidden_size): the sum of the words of each image token."""
    return model.llm.embed_tokens(symbol_ids).sum(axis=2)


def symbol_ids(scenes: Sequence[Scene], tokenizer: Tokenizer) -> np.ndarray:
    """(B, N, 4) ids; see `curriculum.symbols`."""
    return np.stack([symbols(scene, tokenizer) for scene in scenes])
