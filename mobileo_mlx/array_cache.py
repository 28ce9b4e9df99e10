"""Arrays that were computed from images and prompts before, the least recently used of which go first.

Attention is causal: the keys and values of a prompt's beginning, and its hidden states, depend on nothing that
follows. So a second question about the same image computes its own words alone, and a prompt that is drawn again
computes nothing. Cached arrays are what was computed, to the bit: results do not depend on what came before.
`Parts.cached` adds the version of the weights to each key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from .images import pixel_hash
from .prompts import IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from PIL import Image

# At full size an image's keys and values take 3.3 MB in half precision, a prompt's hidden states 0.4 MB.
LIMIT = 64 * 2**20


class ArrayCache:
    """Arrays by key, at most `limit` bytes of them."""

    def __init__(self, limit: int = LIMIT):
        self._limit = limit
        self._kept: OrderedDict[Hashable, list[mx.array]] = OrderedDict()

    def get(self, key: Hashable) -> list[mx.array] | None:
        """The arrays of the key, if they are still there."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def put(self, key: Hashable, arrays: Sequence[mx.array]) -> None:
        """Keeps evaluated arrays under the key."""
        self._kept[key] = list(arrays)
        self._kept.move_to_end(key)
        while self.nbytes > self._limit:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Removes everything."""
        self._kept.clear()

    @property
    def nbytes(self) -> int:
        """The size of all cached arrays in bytes."""
        return sum(array.nbytes for arrays in self._kept.values() for array in arrays)


def image_key(image: Image.Image) -> str:
    """The same for images of the same pixels, and for no others."""
    return f"{image.mode} {image.size} {pixel_hash(image)}"


def prompt_key(ids: Sequence[int], images: Sequence[str]) -> tuple[int | str, ...]:
    """Token ids, with the key of an image in each of their places."""
    keys = iter(images)
    return tuple(next(keys) if i == IMAGE_TOKEN_INDEX else i for i in ids)
