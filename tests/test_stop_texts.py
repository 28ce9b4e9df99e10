from __future__ import annotations

import random

import pytest

from mobileo_mlx.errors import OptionError
from mobileo_mlx.generation_options import AnswerSettings
from mobileo_mlx.stop_texts import StopTexts


def shown(stops: list[str], segments: list[str]) -> tuple[list[str], bool]:
    """What is shown after each segment, and at the end; and whether a stop text was found."""
    texts = StopTexts(stops)
    parts = [texts.add(segment) for segment in segments]
    return [*parts, texts.flush()], texts.found


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    assert shown([], ["a", "b"]) == (["a", "b", ""], False)
    assert shown(["END"], ["an E", "N", "Emy EN", "D of", " it"]) == (["an ", "", "ENEmy ", "", "", ""], True)
    assert shown(["END"], ["the EN"]) == (["the ", "EN"], False)
    assert shown(["\n\n"], ["one\n", "two\n\nthree"]) == (["one", "\ntwo", ""], True)


def test_the_text_that_ends_first_counts() -> None:
    assert shown(["b c", "ab cd"], ["ab cd"]) == (["a", ""], True)
    assert shown(["c", "bc"], ["abcd"]) == (["a", ""], True)


def test_it_makes_no_difference_how_the_answer_is_cut() -> None:
    chance = random.Random(0)
    for _ in range(500):
        text = "".join(chance.choices("ab", k=12))
        stops = ["".join(chance.choices("ab", k=chance.randint(2, 5))) for _ in range(2)]
        cuts = sorted(chance.sample(range(1, 12), 4))
        segments = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
        whole, found = shown(stops, [text])
        pieces, found_in_pieces = shown(stops, segments)
        assert ("".join(pieces), found_in_pieces) == ("".join(whole), found)
        assert not any(stop in "".join(whole) for stop in stops)


@pytest.mark.parametrize("wrong", ["", [""], [1], 5, {"a": 1}])
def test_a_stop_text_is_a_text(wrong: object) -> None:
    with pytest.raises(OptionError, match=r"stop .* is not possible"):
        AnswerSettings(stop=wrong)  # type: ignore[arg-type]
    assert AnswerSettings(stop="a").stop == ("a",)
