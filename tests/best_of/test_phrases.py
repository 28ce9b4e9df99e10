"""What is understood of a text, and what is not."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from mobileo_mlx.best_of.phrases import Content, Thing, changed, plural, read_instruction, read_text, singular


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a photo of two clocks", Content((Thing("clock", None, 2, True),))),
        (
            "A photo of a red orange and a purple broccoli.",
            Content((Thing("orange", "red"), Thing("broccoli", "purple"))),
        ),
        ("a photo of a bench left of a bear", Content((Thing("bench"), Thing("bear")), "to the left of")),
        ("an image of 3 grey mice on a white background", Content((Thing("mouse", "gray", 3, True),), None, "white")),
        ("the stars above the bus", Content((Thing("star", None, None), Thing("bus")), "above")),
        ("the two red stars and the 1 glass", Content((Thing("star", "red", 2, True), Thing("glass", None, 1, True)))),
        ("some buses under the bridge", Content((Thing("bus", None, None), Thing("bridge")), "below")),
    ],
)
def test_what_is_understood(text: str, content: Content) -> None:
    assert read_text(text) == content


@pytest.mark.parametrize(
    "text",
    [
        "sunset over mountains",
        "a dog running on the beach",
        "a man who holds a cup",
        "a cat on a mat in a house",
        "two red and blue stars",
        "a star on a stormy background",
        "zwei rote Sterne",
    ],
)
def test_what_says_more_is_not_understood(text: str) -> None:
    assert read_text(text) is None


@pytest.mark.parametrize(
    "text",
    ["9" * 5000 + " stars", ", ".join(f"a red star{i}" for i in range(21)), "a " + "star" * 500],
    ids=["digits", "things", "a word"],
)
def test_what_is_endless_is_not_understood(text: str) -> None:
    assert read_text(text) is None
    assert read_instruction(f"add {text}") is None


def test_a_noun_of_one_letter_stays_a_noun() -> None:
    content = read_text("two s")
    assert content == Content((Thing("s", None, 2, numbered=True),))
    assert content.caption == "two ses"


def test_all_prompts_of_geneval() -> None:
    """Against what GenEval itself says that they name."""
    file = resources.files("mobileo_mlx.evals") / "data/geneval/evaluation_metadata.jsonl"
    prompts = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(prompts) == 553
    for prompt in prompts:
        content = read_text(prompt["prompt"])
        assert content is not None, prompt["prompt"]
        named = {(one["class"], one.get("color"), one["count"]) for one in prompt["include"]}
        assert {(thing.noun, thing.colour, thing.count) for thing in content.things} == named


@pytest.mark.parametrize(
    "noun",
    ["star", "cross", "bus", "bench", "knife", "sheep", "wine glass", "person", "potato", "house", "box", "baby"],
)
def test_plurals_lead_back(noun: str) -> None:
    assert singular(plural(noun)) == noun


BEFORE = Content((Thing("star", "red"), Thing("circle", "blue")), "above", "gray")


@pytest.mark.parametrize(
    ("instruction", "after"),
    [
        ("make the star green", "a green star above a blue circle on a gray background"),
        ("Change the color of the circle to red.", "a red star above a red circle on a gray background"),
        ("change the star into a cross", "a red cross above a blue circle on a gray background"),
        ("replace the circle with a pink square", "a red star above a pink square on a gray background"),
        ("remove the star", "a blue circle on a gray background"),
        ("add a black cross to the image", "a red star, a blue circle and a black cross on a gray background"),
        ("change the background to cyan", "a red star above a blue circle on a cyan background"),
        ("remove the cross", None),
    ],
)
def test_instructions(instruction: str, after: str | None) -> None:
    change = read_instruction(instruction)
    assert change is not None
    content = changed(BEFORE, change)
    assert after == (None if content is None else content.caption)


@pytest.mark.parametrize("instruction", ["make it look old", "add snow", "turn day into night", "remove all people"])
def test_other_instructions_are_not_understood(instruction: str) -> None:
    assert read_instruction(instruction) is None
