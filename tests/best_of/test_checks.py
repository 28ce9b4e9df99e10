"""The questions that follow from a prompt or an instruction."""

from __future__ import annotations

from mobileo_mlx.best_of.checks import Check, change_checks, prompt_checks
from mobileo_mlx.best_of.phrases import read_instruction


def asked(checks: list[Check]) -> dict[str, str]:
    assert all(check.expected in check.answers for check in checks)
    return {check.question: check.expected for check in checks}


def test_counts_are_asked_for_and_described() -> None:
    assert asked(prompt_checks("two red stars on a gray background")) == {
        "is there a red star?": "yes",
        "what color are the stars?": "red",
        "how many stars are there?": "two",
        "describe the image.": "two",
        "how many objects are there?": "two",
        "what color is the background?": "gray",
    }


def test_an_article_does_not_say_that_there_is_nothing_else() -> None:
    assert asked(prompt_checks("a photo of a cake")) == {
        "is there a cake?": "yes",
        "how many cakes are there?": "one",
        "describe the image.": "a",
    }


def test_positions_have_mirrored_questions() -> None:
    checks = prompt_checks("a star left of a circle")
    mirrors = {check.question: check.mirror for check in checks if check.kind == "position"}
    assert mirrors == {
        "is the star to the left of the circle?": "is the circle to the left of the star?",
        "is the circle to the right of the star?": "is the star to the right of the circle?",
    }
    # Two of one name are told apart by their colours, and their colour can't be asked for.
    checks = prompt_checks("a red star above a blue star")
    assert "is the red star above the blue star?" in asked(checks)
    assert asked(checks)["how many stars are there?"] == "two"
    assert not [check for check in checks if check.kind == "colour"]


def test_what_is_not_understood_is_asked_about_as_a_whole() -> None:
    assert asked(prompt_checks("Sunset over mountains.")) == {"does this image show Sunset over mountains?": "yes"}


def test_changes() -> None:
    def questions(instruction: str) -> dict[str, str]:
        change = read_instruction(instruction)
        assert change is not None
        return asked(change_checks(change))

    assert questions("remove the star") == {"is there a star?": "no"}
    assert questions("change the background to gray") == {"what color is the background?": "gray"}
    assert questions("make the star blue") == {"is there a blue star?": "yes", "what color is the star?": "blue"}
    assert questions("replace the star with a cross") == {"is there a cross?": "yes", "is there a star?": "no"}
