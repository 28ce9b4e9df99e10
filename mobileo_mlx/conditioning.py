"""Image features among the embeddings of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .prompts import IMAGE_TOKEN_INDEX

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Spliced:
    """A batch of embeddings in which every image has its place.

    Attributes:
        inputs_embeds: (B, T, hidden_size); rows shorter than the longest end in zeros.
        attention_mask: (B, T) bool, True where a row has a token.
        labels: (B, T) int, or None where none were given; images and padding are `IGNORED_LABEL`.
    """

    inputs_embeds: mx.array
    attention_mask: np.ndarray
    labels: np.ndarray | None


def splice(
    embed_tokens: Callable[[mx.array], mx.array],
    input_ids: Sequence[Sequence[int]] | np.ndarray,
    image_features: Sequence[mx.array] = (),
    *,
    attention_mask: np.ndarray | None = None,
    labels: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> Spliced:
    """Embeds token ids and puts the features of an image wherever an id is `IMAGE_TOKEN_INDEX`.

    Args:
        embed_tokens: ids (T,) to embeddings (T, hidden_size).
        input_ids: B rows of ids.
        image_features: each (tokens, hidden_size), in the order of their places in all rows.
        attention_mask: (B, T) bool; what is False is padding and is left out before images are put in.
        labels: (B, T), the id to be predicted at each position.

    Raises:
        ValueError: there are more or fewer images than places.
    """
    features = iter(image_features)
    embeds, row_labels = [], []
    for b, row in enumerate(input_ids):
        ids = np.asarray(row)
        keep = np.ones(len(ids), bool) if attention_mask is None else np.asarray(attention_mask[b], bool)
        label = np.full(len(ids), IGNORED_LABEL) if labels is None else np.asarray(labels[b])
        ids, label = ids[keep], label[keep]
        parts, part_labels, start = [], [], 0
        for place in [*np.flatnonzero(ids == IMAGE_TOKEN_INDEX), len(ids)]:
            if place > start:
                parts.append(embed_tokens(mx.array(ids[start:place])))
                part_labels.append(label[start:place])
            if place < len(ids):
                image = next(features, None)
                if image is None:
                    raise ValueError("the prompt has more places for images than there are images")
                parts.append(image)
                part_labels.append(np.full(image.shape[0], IGNORED_LABEL))
            start = place + 1
        embeds.append(mx.concatenate(parts))
        row_labels.append(np.concatenate(part_labels))
    if next(features, None) is not None:
        raise ValueError("there are more images than places for them in the prompt")
    length = max(len(row) for row in row_labels)
    return Spliced(
        mx.stack([mx.pad(row, [(0, length - row.shape[0]), (0, 0)]) for row in embeds]),
        np.stack([np.arange(length) < len(row) for row in row_labels]),
        None
        if labels is None
        else np.stack([np.pad(row, (0, length - len(row)), constant_values=IGNORED_LABEL) for row in row_labels]),
    )
