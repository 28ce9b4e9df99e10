"""Keys and values of conversations that may go on, found by what was read.

Who answers conversations without keeping them, such as a server that gets the whole history with every request, finds
here what the model has read of it before. Attention is causal: the keys and values of a common beginning are the same,
whatever followed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .models.qwen2 import KVCache

# At full size a position takes 12 kB in half precision.
LIMIT = 128 * 2**20
COUNT = 16
_SPARE = 16  # positions that are sooner read again than a cache is copied

Key = tuple[int | str, ...]  # of `array_cache.prompt_key`: token ids, and the key of an image in each of their places
Versions = Callable[[Sequence[str]], tuple[int, ...]]  # networks to what changes with their weights


@dataclass(frozen=True)
class Kept:
    """What was read, and its keys and values.

    Attributes:
        key: of these positions.
        cache: one entry a layer; it may hold a position more.
        networks: that have computed it.
        version: of their weights.
    """

    key: Key
    cache: list[KVCache]
    networks: tuple[str, ...]
    version: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of its buffers in bytes."""
        return sum(array.nbytes for layer in self.cache for array in (layer.keys, layer.values) if array is not None)


class ConversationCaches:
    """The caches of several conversations; those that were not used for longest go first.

    Whoever takes one has it alone: two streams never extend the same cache. `put` may be called by the garbage
    collector, in any thread and in the midst of anything: what it is given waits where the caches are just in use.

    Args:
        image_tokens: positions that an image takes.
        limit: bytes of all caches at most, between two calls.
        count: of caches at most.
    """

    def __init__(self, image_tokens: int, *, limit: int = LIMIT, count: int = COUNT):
        self._image_tokens, self._limit, self._count = image_tokens, limit, count
        self._kept: list[Kept] = []  # the one that was used last is the last
        self._returned: deque[Kept] = deque()
        self._lock = threading.Lock()

    def take(self, key: Key, versions: Versions) -> tuple[int, list[KVCache]] | None:
        """The cache with the longest common beginning, without what follows it, and how much of the key that is.

        A cache with little else in it is the caller's from now on. Of others the caller gets a copy, not evaluated
        yet, so that a branch leaves the conversation as it is.

        Args:
            key: of a prompt. Its last entry, an id, is never found: it has to be computed, for the token that follows.
            versions: of the networks as they are now; what others have computed is forgotten.
        """
        with self._lock:
            self._file()
            self._kept = [kept for kept in self._kept if kept.version == versions(kept.networks)]
            # Of several the one with the least behind it, and of those the newest.
            ranks = ((_common(kept.key, key), -len(kept.key), i) for i, kept in enumerate(self._kept))
            common, _, index = max(ranks, default=(0, 0, 0))
            count = min(common, len(key) - 1)
            if not count:
                return None
            found = self._kept[index]
            length = self._positions(key[:count])
            if found.cache[0].offset > length + _SPARE:
                return count, [_copied(layer, length) for layer in found.cache]
            self._kept.remove(found)
            for layer in found.cache:
                layer.offset = length
            return count, found.cache

    def put(self, kept: Kept) -> None:
        """Keeps a cache that nobody extends any more."""
        self._returned.append(kept)
        if self._lock.acquire(blocking=False):
            try:
                self._file()
            finally:
                self._lock.release()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._returned.clear()
            self._kept.clear()

    @property
    def nbytes(self) -> int:
        """The size of all caches in bytes."""
        return sum(kept.nbytes for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def _file(self) -> None:
        """Takes what was given back to the others, and frees what is too much."""
        while self._returned:
            new = self._returned.popleft()
            self._kept = [kept for kept in self._kept if _common(kept.key, new.key) < len(kept.key)]
            self._kept.append(new)
        while len(self._kept) > self._count or self.nbytes > self._limit:
            self._kept.pop(0)

    def _positions(self, key: Key) -> int:
        images = sum(isinstance(entry, str) for entry in key)
        return len(key) + images * (self._image_tokens - 1)


def _copied(layer: KVCache, length: int) -> KVCache:
    keys, values = layer.state
    return KVCache.holding(keys[..., :length, :], values[..., :length, :])


def _common(one: Key, other: Key) -> int:
    """The length of the longest common beginning."""
    for i, (entry, another) in enumerate(zip(one, other, strict=False)):
        if entry != another:
            return i
    return min(len(one), len(other))
