"""What the verdicts on GenEval's pictures add up to, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .geneval_prompts import TAGS, official_texts

# Mobile-O-0.5B in table 2 of arXiv 2602.20161, "strictly raw prompts".
PAPER = dict(zip((*TAGS, "overall"), (0.98, 0.87, 0.57, 0.86, 0.68, 0.49, 0.74), strict=True))

_Z = 1.959964  # of 95 %, two-sided


@dataclass(frozen=True)
class Share:
    """A share, and its 95 % interval; None where a single prompt says nothing about how much prompts differ."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Task:
    """The pictures of a tag.

    Attributes:
        tag: its name.
        prompts, images: how many there are.
        correct: right pictures.
        score: the share of them.
    """

    tag: str
    prompts: int
    images: int
    correct: int
    score: Share


@dataclass(frozen=True)
class Report:
    """What the official `summary_scores.py` prints, and the intervals.

    Attributes:
        tasks: in the order of the paper's table, then others as they come.
        overall: the mean of the tasks' scores.
        images, prompts: how many were scored.
        correct_images: the share of right pictures.
        correct_prompts: the share of prompts of which any picture is right.
        official: how many of the prompts are of the official ones.
    """

    tasks: tuple[Task, ...]
    overall: Share
    images: int
    prompts: int
    correct_images: float
    correct_prompts: float
    official: int

    @property
    def comparable(self) -> bool:
        """Whether these are the prompts of the paper, and all of them."""
        return self.official == self.prompts == len(official_texts())


def summarize(results: Iterable[Mapping[str, Any]]) -> Report:
    """The report of results, of which there is at least one.

    Args:
        results: a line of `results.jsonl` each: "tag", "metadata" (the same text for all pictures of a prompt) and
            "correct".
    """
    verdicts: dict[str, dict[str, list[bool]]] = {}  # by tag and prompt
    for result in results:
        verdicts.setdefault(result["tag"], {}).setdefault(result["metadata"], []).append(bool(result["correct"]))
    order = [*(tag for tag in TAGS if tag in verdicts), *(tag for tag in verdicts if tag not in TAGS)]
    tasks = tuple(_task(tag, list(verdicts[tag].values())) for tag in order)
    prompts = [prompt for by_prompt in verdicts.values() for prompt in by_prompt.values()]
    images = sum(map(len, prompts))
    return Report(
        tasks=tasks,
        overall=_mean([task.score for task in tasks]),
        images=images,
        prompts=len(prompts),
        correct_images=sum(map(sum, prompts)) / images,
        correct_prompts=sum(map(any, prompts)) / len(prompts),
        official=len(official_texts() & {text for by_prompt in verdicts.values() for text in by_prompt}),
    )


def share_of_clusters(clusters: Sequence[Sequence[bool]]) -> Share:
    """The share of what is true, and its interval where what is in one cluster is alike.

    Wilson's interval, for as many independent observations as would give the variance that the clusters show, which is
    the ratio estimator's (Cochran, Sampling Techniques). Where all is true, or all is false, each cluster is one
    observation.
    """
    total, count = sum(map(len, clusters)), len(clusters)
    share = sum(map(sum, clusters)) / total
    if count < 2:
        return Share(share, None, None)
    if share in (0, 1):
        return Share(share, *_wilson(share, count))
    variance = count / (count - 1) * sum((sum(cluster) - share * len(cluster)) ** 2 for cluster in clusters) / total**2
    # Clusters that are more alike than their content says make no picture count twice.
    observations = min(share * (1 - share) / variance, total) if variance else total
    return Share(share, *_wilson(share, observations))


def _task(tag: str, clusters: Sequence[Sequence[bool]]) -> Task:
    images, correct = sum(map(len, clusters)), sum(map(sum, clusters))
    return Task(tag, len(clusters), images, correct, share_of_clusters(clusters))


def _wilson(share: float, count: float) -> tuple[float, float]:
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _mean(shares: Sequence[Share]) -> Share:
    """The mean of independent shares, whose intervals are joined (Zou and Donner, Statistics in Medicine 27, 2008)."""
    value = sum(share.value for share in shares) / len(shares)
    lows, highs = [], []
    for share in shares:
        if share.low is None or share.high is None:
            return Share(value, None, None)
        lows.append((share.value - share.low) ** 2)
        highs.append((share.high - share.value) ** 2)
    return Share(value, value - math.sqrt(sum(lows)) / len(shares), value + math.sqrt(sum(highs)) / len(shares))
