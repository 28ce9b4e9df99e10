"""The world of shapes in GenEval's format: its prompts, and what its detector makes of true pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.__main__ import main
from benchmarks.shapes.detector import Detector
from benchmarks.shapes.geneval import sample_prompts
from benchmarks.shapes.world import COLOURS, HELD_OUT, Object, Scene, render
from mobileo_mlx.evals.geneval_prompts import TAGS, read_prompts
from mobileo_mlx.evals.geneval_rules import Verdict, judge, keep


def verdict(tag: str, things: list[Object], include: list[Any], *exclude: Any) -> Verdict:
    """On the true picture of objects on white."""
    image, detector = Image.fromarray(render(Scene(tuple(things)))), Detector()
    metadata = {"tag": tag, "prompt": "x", "include": include, "exclude": list(exclude)}
    return judge(metadata, keep(detector.detect(image), tag), lambda found: detector.colours(image, found))


def test_all_shapes_and_colours_are_found_with_their_boxes() -> None:
    for colour in COLOURS:
        image = Image.fromarray(render(Scene((Object("square", colour, 2, 6), Object("star", "black", 6, 2)))))
        detector = Detector()
        found = detector.detect(image)
        assert dict(zip([one.name for one in found], detector.colours(image, found), strict=True)) == {
            "square": colour,
            "star": "black",
        }
        (square,) = (one for one in found if one.name == "square")
        # Around (16, 48) of 64 pixels, with a half side of 0.88 * 0.18 * 64 = 10.1.
        assert np.abs(np.array(square.box) - [5.9, 37.9, 26.1, 58.1]).max() <= 1


def test_verdicts_on_true_pictures() -> None:
    star, circle = Object("star", "red", 2, 4), Object("circle", "blue", 6, 4)
    assert verdict("single_object", [star], [{"class": "star", "count": 1}]).correct
    assert verdict("single_object", [circle], [{"class": "star", "count": 1}]).reason == "expected star>=1, found 0"
    of_red, of_blue = ({"class": "star", "count": 1, "color": colour} for colour in ("red", "blue"))
    assert verdict("colors", [star, circle], [of_red]).correct
    assert verdict("colors", [star, circle], [of_blue]).reason == "expected blue star>=1, found 0 blue; and 1 red"
    beside = {"class": "star", "count": 1, "position": ["left of", 0]}
    assert verdict("position", [star, circle], [{"class": "circle", "count": 1}, beside]).correct
    above = {**beside, "position": ["above", 0]}
    wrong = verdict("position", [star, circle], [{"class": "circle", "count": 1}, above])
    assert wrong.reason == "expected star above target, found left of target"
    both = [Object("star", "red", 2, 6), Object("star", "red", 6, 6)]
    assert verdict("counting", both, [{"class": "star", "count": 2}], {"class": "star", "count": 3}).correct
    three = [*both, Object("star", "red", 4, 2)]
    assert not verdict("counting", three, [{"class": "star", "count": 2}], {"class": "star", "count": 3}).correct


@pytest.mark.parametrize(("tag", "most"), [("single_object", 30), ("colors", 215), ("position", 600)])
def test_prompts_differ_and_there_are_no_more_than_the_world_has(tag: str, most: int) -> None:
    prompts = sample_prompts(tag, 10_000, np.random.default_rng(0))
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts) <= most
    assert len(prompts) > 0.95 * most


def test_prompts_ask_for_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    assert main(["geneval-prompts", "--out", str(path), "--n", "20"]) == 0
    assert capsys.readouterr().out == f"{path}: {', '.join(f'{tag} 20' for tag in TAGS)}\n"
    prompts = read_prompts(path)  # all can be scored
    assert Counter(prompt["tag"] for prompt in prompts) == dict.fromkeys(TAGS, 20)
    for prompt in prompts:
        words, include = prompt["prompt"], prompt["include"]
        assert all(entry["class"] in words and entry.get("color", "") in words for entry in include)
        assert not {(entry["class"], entry.get("color")) for entry in include} & HELD_OUT
        if prompt["tag"] == "counting":
            (entry,), (more,) = include, prompt["exclude"]
            assert words.startswith(("two ", "three ", "four ")[entry["count"] - 2])
            assert (more["class"], more["count"]) == (entry["class"], entry["count"] + 1)
        if prompt["tag"] == "position":
            other, thing = include
            relation, target = thing["position"]
            assert target == 0
            first, second = (words.index(f" {entry['class']}") for entry in (thing, other))
            assert first < words.index(relation) < second
    assert main(["geneval-prompts", "--out", str(path), "--n", "20"]) == 2  # it exists
    assert main(["geneval-prompts", "--out", str(tmp_path / "none"), "--n", "0"]) == 2
