"""How good the classifier is, on pictures that it was not trained on, and what it takes for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ..common import markdown_table
from ..shapes.report import wilson
from .augment import augmented
from .classifier import Classifier, classes, looks, rank
from .rules import Picture
from .sprites import SIZES, emoji
from .world import BACKGROUNDS, CENTRE, Scene, Thing, render_batch

ROUNDS = 5  # of all emoji, degraded
SEED = 1  # not that of training
WORST = 25
_CHUNK = 256


def measured(model: Classifier) -> Iterator[str]:
    """Lines of a table, and of the confusions."""
    rng = np.random.default_rng(SEED)
    everything = len(emoji(toned=True))
    confusions: Counter[tuple[str, str]] = Counter()
    rows = []

    def add(name: str, right: np.ndarray, ranked: np.ndarray) -> None:
        ranks = (looks()[ranked] == looks()[right][:, None]).argmax(axis=1)
        for true, taken in zip(right[ranks > 0], ranked[ranks > 0, 0], strict=True):
            confusions[emoji()[true].name, emoji()[taken].name] += 1
        cells = [name, str(len(right))]
        for first in (1, 5):
            found = int((ranks < first).sum())
            low, high = wilson(found, len(right))
            cells.append(f"{found / len(right):.4f} ({low:.4f} - {high:.4f})")
        rows.append(tuple(cells))

    indices = np.tile(np.arange(everything), ROUNDS)
    parts = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    add("degraded", classes()[indices], np.concatenate([rank(model, augmented(part, rng)) for part in parts]))
    for size in SIZES:
        grounds = rng.choice(list(BACKGROUNDS), size=everything)
        things = [Thing(index, *CENTRE, size) for index in range(everything)]
        scenes = [Scene((thing,), str(ground)) for thing, ground in zip(things, grounds, strict=True)]
        cuts = [Picture(one).cut(thing) for one, thing in zip(render_batch(scenes), things, strict=True)]
        add(f"clean, {size}", classes(), rank(model, np.stack(cuts)))
    yield from markdown_table(("pictures", "of", "top 1", "top 5"), rows, names=1)
    yield ""
    yield "Most often confused: " + ", ".join(
        f"{true} for {taken} ({count})" for (true, taken), count in confusions.most_common(WORST)
    )
