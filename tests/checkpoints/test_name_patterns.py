"""Expressions on names, against Python's `re` as the reference; and what is refused, at once."""

from __future__ import annotations

import random
import re

import pytest

from mobileo_mlx.checkpoints.name_patterns import MAX_LENGTH, Pattern, PatternError

NAME = "model.layers.12.self_attn.q_proj"


@pytest.mark.parametrize(
    ("text", "whole", "end", "part"),
    [
        (r"q_proj", False, True, True),
        (r"self_attn", False, False, True),
        (r"layers\.1", False, False, False),
        (r".*\.(q|k)_proj", True, True, True),
        (r"^model\.layers\.(\d|1[0-2])\.\w+\.[a-q]_proj$", True, True, True),
        (
            r"(?:.*?(?:layers|blocks).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.x[\d]{1,})",
            True,
            True,
            True,
        ),
        (r"l[a-z]{5}\.[^.]+\..*\bq", False, False, False),
        (r"", False, False, False),
    ],
)
def test_the_three_ways_to_match(text: str, whole: bool, end: bool, part: bool) -> None:
    pattern = Pattern(text)
    found = pattern.matches(NAME), pattern.matches_end(NAME), pattern.matches_parts(NAME)
    assert found == (whole, end, part) == reference(text, NAME)


def reference(text: str, name: str) -> tuple[bool, bool, bool]:
    return (
        re.fullmatch(text, name) is not None,
        re.match(rf"(.*\.)?({text})$", name) is not None,
        re.match(rf"(^|.*\.)({text})($|\..*)", name) is not None,
    )


def random_expression(source: random.Random, depth: int = 0) -> str:
    """Alternatives of sequences of repeated characters, sets and groups; now and then one that is no expression."""

    def atom() -> str:
        kind = source.random()
        if kind < 0.5:
            return source.choice(["a", "b", "1", ".", r"\.", "^", "$", r"\b"])
        if kind < 0.7:
            sets = [r"\d", r"\W", "[ab]", "[^a]", "[0-9]", r"[\W1]", "[]a]", "[^]a]", "[a-]", "[b-a]"]
            return source.choice(sets)
        if depth < 3:
            return f"({source.choice(['', '?:'])}{random_expression(source, depth + 1)}){source.choice(['', '', '?'])}"
        return "a"

    def repeated(text: str) -> str:
        if text in ("^", "$", r"\b") or text.startswith("(") or source.random() < 0.7:
            return text
        return text + source.choice(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,}", "{2,1}"])

    sequences = ("".join(repeated(atom()) for _ in range(source.randrange(5))) for _ in range(source.choice([1, 1, 2])))
    return "|".join(sequences)


def test_like_re() -> None:
    source = random.Random(0)
    matched = refused = 0
    for _ in range(2000):
        text = random_expression(source)
        try:
            re.compile(text)
        except re.error:
            refused += 1
            with pytest.raises(PatternError):
                Pattern(text)
            continue
        pattern = Pattern(text)
        for _ in range(5):
            name = "".join(source.choice("ab1.") for _ in range(source.randrange(9)))
            found = pattern.matches(name), pattern.matches_end(name), pattern.matches_parts(name)
            assert found == reference(text, name), (text, name)
            matched += found[0]
    assert matched > 500
    assert refused > 100


def test_the_number_behind() -> None:
    assert Pattern("layers").number_behind(NAME) == 12
    assert Pattern("blocks").number_behind(NAME) is None
    assert Pattern(".*").number_behind("a.1.b.2.c") == 1
    assert Pattern("a").number_behind("a.x1.b") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(.+)+@", r"a repeated group at character 6"),
        ("(a|b)*", "a repeated group"),
        ("(?!a)b", r"\(\?! at character 2"),
        ("(?i)a", r"\(\?i"),
        ("(?P<x>a)", r"\(\?P"),
        (r"(a)\1", r"\\1"),
        ("a**", "a repetition of a repetition"),
        ("a{99}", "number of repetitions"),
        ("a{", "no number of repetitions"),
        ("*", "nothing to repeat"),
        ("a)", r"a \) without its \("),
        ("(a", r"a missing \)"),
        ("[a", r"a missing \]"),
        ("[é-\U0001f600]", "a range"),
        ("(" * 21, "so many groups"),
        ("a" * (MAX_LENGTH + 1), "has 4,001 characters"),
        ("(" * MAX_LENGTH, "so many groups"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason):
        Pattern(text)


@pytest.mark.parametrize(
    "text", [".*" * 1900, ".*a" * 1300, "(a?|.*)" * 500 + "b", "(((.*.*|.*)|.*)|.*)" * 200, ".{64}" * 50]
)
def test_what_keeps_re_busy_is_no_more_than_a_few_operations_a_part(text: str) -> None:
    assert not Pattern(f"{text}@").matches_end("a" * 400)
