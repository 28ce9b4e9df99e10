"""GenEval's prompts: the bundled ones, and those of a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mobileo_mlx.errors import PromptError
from mobileo_mlx.evals.geneval_prompts import DATA, OBJECT_NAMES, official_texts, read_prompts
from mobileo_mlx.evals.geneval_rules import COLOURS

GOOD: dict[str, Any] = {"tag": "colors", "prompt": "a red star", "include": [{"class": "star", "count": 1}]}


def test_the_official_prompts_are_bundled_with_their_licence() -> None:
    prompts = read_prompts()
    counts = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(prompt["tag"] for prompt in prompts) == counts
    assert len(official_texts()) == 553
    names = OBJECT_NAMES.read_text().splitlines()
    assert len(names) == 80
    entries = [entry for prompt in prompts for entry in [*prompt["include"], *prompt.get("exclude", ())]]
    assert {entry["class"] for entry in entries} <= set(names)
    assert {entry["color"] for entry in entries if "color" in entry} == set(COLOURS)
    assert "Copyright (c) 2023 Dhruba Ghosh" in (DATA / "LICENSE").read_text()


def test_the_first_of_them() -> None:
    assert [prompt["prompt"] for prompt in read_prompts(limit=2)] == ["a photo of a bench", "a photo of a cow"]


def test_a_file_of_prompts_keeps_unknown_keys_and_may_have_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps({**GOOD, 'detailed_caption': 'x'})}\n\n{json.dumps(GOOD)}\n")
    assert read_prompts(path) == [{**GOOD, "detailed_caption": "x"}, GOOD]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tag": ""}, "has no text 'tag'"),
        ({"prompt": 3}, "has no text 'prompt'"),
        ({"include": []}, "has neither a list 'include' nor a list 'exclude'"),
        ({"include": {}}, "has neither a list 'include' nor a list 'exclude'"),
        ({"include": [3]}, "asks for something without a 'class'"),
        ({"exclude": [{"count": 3}]}, "asks for something without a 'class'"),
        ({"include": [{"class": "star", "count": 0}]}, "has the count 0; choose a whole number from 1 to 1000"),
        ({"include": [{"class": "star", "count": True}]}, "has the count True; choose a whole number from 1 to 1000"),
        ({"include": [{"class": "star", "count": 1, "color": "mauve"}]}, f"color 'mauve'; there are {COLOURS[0]}, "),
        ({"include": [{"class": "star", "count": 1, "position": ["near", 0]}]}, "position ['near', 0]; write one of"),
        (
            {"include": [{"class": "star", "count": 1, "position": ["above", 0]}]},
            "has a position relative to an entry that does not stand before it",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**GOOD, **change})}\n")
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"'{path}', line 2 ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("text", "sentence"), [("", "holds no prompts"), ("[]\n", "line 1 is not a JSON object")])
def test_files_of_something_else(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=sentence):
        read_prompts(path)
    with pytest.raises(PromptError, match="can't be read"):
        read_prompts(tmp_path / "none")
