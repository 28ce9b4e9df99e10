"""Figures of a data set: counts, sizes, lengths and words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .samples import Sample

_WORDS = 20  # that are listed
# Words that say nothing of a picture.
_COMMON = frozenset("a an and are as at be by for from has in is it its of on or that the this to was with".split())  # noqa: SIM905


def figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a data set holds, as JSON can hold it."""
    texts = [sample.prompt.split() for sample in samples]
    words = Counter(word for text in texts for word in _words(text))
    qa = [pair for sample in samples for pair in sample.qa]
    return {
        "samples": len(samples),
        "drawings": sum(sample.source is None for sample in samples),
        "edits": sum(sample.source is not None for sample in samples),
        "held_out": sum(sample.held_out for sample in samples),
        "questions": len(qa),
        "prompts_from": dict(Counter(sample.origin for sample in samples).most_common()),
        "width": spread([sample.picture.width for sample in samples]),
        "height": spread([sample.picture.height for sample in samples]),
        "words_of_a_prompt": spread([len(text) for text in texts]),
        "words_of_an_answer": spread([len(pair.answer.split()) for pair in qa]),
        "distinct_prompts": len({sample.prompt for sample in samples}),
        "distinct_words": len(words),
        "most_frequent_words": dict(words.most_common(_WORDS)),
    }


def spread(numbers: Sequence[int]) -> dict[str, int] | None:
    """The smallest, the median (the lower of two) and the largest; None of nothing."""
    if not numbers:
        return None
    ordered = sorted(numbers)
    return {"smallest": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "largest": ordered[-1]}


def _words(text: Iterable[str]) -> list[str]:
    found = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", " ".join(text).lower())
    return [word for word in found if word not in _COMMON]
