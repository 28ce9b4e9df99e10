from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.conditioning import IGNORED_LABEL, embed_prompts
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX as IMAGE

WIDTH = 3


def embed(ids: mx.array) -> mx.array:
    """Every id becomes a row of itself."""
    return mx.broadcast_to(ids[:, None].astype(mx.float32), (ids.shape[0], WIDTH))


def image(tokens: int, value: float) -> mx.array:
    return mx.full((tokens, WIDTH), value)


def values(embeds: mx.array) -> list[list[float]]:
    assert embeds.shape[2] == WIDTH
    return embeds[..., 0].tolist()


def test_text_alone() -> None:
    inputs = embed_prompts(embed, [[1, 2, 3], [4, 5, 6]])
    assert values(inputs.inputs_embeds) == [[1, 2, 3], [4, 5, 6]]
    assert inputs.attention_mask.all()
    assert inputs.labels is None


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, IMAGE, 2], [1, 0.5, 0.5, 2]),
        ([IMAGE, 1], [0.5, 0.5, 1]),
        ([1, IMAGE], [1, 0.5, 0.5]),
        ([IMAGE], [0.5, 0.5]),
    ],
)
def test_an_image_takes_its_place(ids: list[int], expected: list[float]) -> None:
    assert values(embed_prompts(embed, [ids], [image(2, 0.5)]).inputs_embeds) == [expected]


def test_images_come_in_order() -> None:
    ids = [[IMAGE, 1, IMAGE], [2, 3, IMAGE]]
    inputs = embed_prompts(embed, ids, [image(1, 0.1), image(2, 0.2), image(1, 0.3)])
    assert np.allclose(values(inputs.inputs_embeds), [[0.1, 1, 0.2, 0.2], [2, 3, 0.3, 0]])
    assert inputs.attention_mask.tolist() == [[True] * 4, [True, True, True, False]]


def test_padding_goes_out_before_and_comes_back_after() -> None:
    ids = np.array([[1, IMAGE, 2, 9], [3, 9, 9, 9]])
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    labels = np.array([[1, IMAGE, 2, 0], [3, 0, 0, 0]])
    inputs = embed_prompts(embed, ids, [image(2, 0.5)], attention_mask=mask, labels=labels)
    assert values(inputs.inputs_embeds) == [[1, 0.5, 0.5, 2], [3, 0, 0, 0]]
    assert inputs.attention_mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [[1, IGNORED_LABEL, IGNORED_LABEL, 2], [3] + [IGNORED_LABEL] * 3]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_places_and_images_have_to_be_as_many(count: int) -> None:
    with pytest.raises(ValueError, match="images"):
        embed_prompts(embed, [[1, IMAGE, 2, IMAGE]], [image(1, 0.5)] * count)
