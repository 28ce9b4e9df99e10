"""What verdicts add up to, and the intervals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mobileo_mlx.evals.geneval_prompts import TAGS, official_texts, read_prompts, text_of
from mobileo_mlx.evals.geneval_report import PAPER, share_of_clusters, summarize


def results(tag: str, *clusters: tuple[int, ...]) -> list[dict[str, Any]]:
    """The pictures of a prompt for each cluster: 1 is right."""
    return [
        {"tag": tag, "metadata": f"{tag} {number}", "correct": bool(right)}
        for number, cluster in enumerate(clusters)
        for right in cluster
    ]


def test_the_overall_is_the_mean_of_the_tasks() -> None:
    report = summarize(
        [*results("position", (1, 0, 0, 0), (0, 0, 0, 0)), *results("colors", (1, 1, 1, 1)), *results("mine", (1, 0))]
    )
    assert [task.tag for task in report.tasks] == ["colors", "position", "mine"]
    assert [(task.prompts, task.images, task.correct) for task in report.tasks] == [(1, 4, 4), (2, 8, 1), (1, 2, 1)]
    assert report.overall.value == pytest.approx((1 + 1 / 8 + 1 / 2) / 3)
    assert (report.images, report.prompts, report.official) == (14, 4, 0)
    assert report.correct_images == pytest.approx(6 / 14)
    assert report.correct_prompts == pytest.approx(3 / 4)
    assert report.overall.low is None  # one prompt says nothing about others
    assert not report.comparable


def test_the_official_prompts_are_known() -> None:
    texts = [(prompt["tag"], text_of(prompt)) for prompt in read_prompts()]
    every = [{"tag": tag, "metadata": text, "correct": True} for tag, text in texts]
    assert (summarize(every).official, summarize(every).comparable) == (len(official_texts()), True)
    assert (summarize(every[:9]).official, summarize(every[:9]).comparable) == (9, False)
    assert [task.tag for task in summarize(every).tasks] == list(TAGS)


def test_the_papers_overall_is_the_mean_of_its_tasks() -> None:
    assert round(sum(PAPER[tag] for tag in TAGS) / 6, 2) == PAPER["overall"] == 0.74


def test_what_the_page_says_about_chance() -> None:
    """±1.7 points where the four pictures of a prompt have nothing in common, ±3.3 where they are the same."""
    counts = Counter(prompt["tag"] for prompt in read_prompts())
    for samples, points in ((4, 1.7), (1, 3.3)):
        variance = sum(PAPER[tag] * (1 - PAPER[tag]) / (samples * counts[tag]) for tag in TAGS) / 36
        assert round(196 * variance**0.5, 1) == points


def test_pictures_that_are_alike_count_as_one() -> None:
    """100 prompts, half of which are right: four equal samples each say no more than one."""
    clusters = [[True] * 4, [False] * 4] * 50
    found = share_of_clusters(clusters)
    alone = share_of_clusters([cluster[:1] for cluster in clusters])
    # p = 0.5, n = 100: (0.5 + 1.92 / 100 -+ 1.96 * sqrt(0.25 / 100 + 3.84 / 40000)) / (1 + 3.84 / 100)
    assert (found.low, found.high) == (pytest.approx(0.4038, abs=6e-4), pytest.approx(0.5962, abs=6e-4))
    assert (found.low, found.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_pictures_that_differ_within_a_prompt_count_singly() -> None:
    even = share_of_clusters([[True, False, True, False]] * 100)
    assert even.low is not None
    assert even.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=1e-3)  # 400 observations, not more


@pytest.mark.parametrize("right", [True, False])
def test_where_all_prompts_agree_each_is_one_observation(right: bool) -> None:
    found = share_of_clusters([[right] * 4] * 80)
    assert found.value == right
    # Wilson's interval of 80 of 80: 80 / (80 + 3.84)
    assert (found.low if right else 1 - (found.high or 0)) == pytest.approx(80 / 83.84, abs=1e-3)
    assert (found.high if right else found.low) == pytest.approx(float(right), abs=1e-12)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Prompts whose pictures are right with a chance of their own: 95 % of the intervals, and not just 80 %."""
    rng = np.random.default_rng(0)
    inside, tries = 0, 2000
    for _ in range(tries):
        chances = rng.beta(0.6, 0.4, 90)  # mean 0.6
        found = share_of_clusters((rng.random((90, 4)) < chances[:, None]).tolist())
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.6 <= found.high
    assert 0.935 <= inside / tries <= 0.965
