"""Questions that follow from captions and instructions, and what a judge says of samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mobileo_mlx.datasets.drafts import Draft
from mobileo_mlx.datasets.judged import judge_samples
from mobileo_mlx.datasets.questions import questions_of
from mobileo_mlx.errors import PromptError
from mobileo_mlx.training.quadruplets import QA

from .conftest import picture


def asked(draft, *answered, how="checks"):
    return {pair.question: pair.answer for pair in questions_of(draft, answered, how)}


def test_a_caption_answers_questions():
    assert asked(Draft("a.png", caption="two red stars on a gray background")) == {
        "Describe the image.": "two red stars on a gray background",
        "what color are the stars?": "red",
        "how many stars are there?": "two",
        "what color is the background?": "gray",
    }


def test_relations_are_asked_for_with_both_answers():
    found = asked(Draft("a.png", caption="a star above a circle"))
    answers = [found[question] for question in found if question.startswith("is the ")]
    assert sorted(answers) == ["no", "no", "yes", "yes"]
    assert not any(question.startswith("is there") for question in found)


def test_an_instruction_answers_questions():
    found = asked(Draft("b.png", source="a.png", instruction="change the background to gray"))
    assert found == {"what color is the background?": "gray"}
    assert asked(Draft("b.png", source="a.png", instruction="change the background to gray"), how="describe") == {}


@pytest.mark.parametrize("caption", ["7", "!?", "a" * 5000, "the the the on on of", "a red", "日本語"])
def test_any_caption_is_one(caption):
    assert asked(Draft("a.png", caption=caption))["Describe the image."] == caption


def test_questions_of_a_source_come_first_and_once():
    draft = Draft("a.png", caption="a red star", qa=(QA("What color is the star?", "crimson"),))
    assert asked(draft, QA("Is it night?", "No.")) == {
        "What color is the star?": "crimson",
        "Is it night?": "No.",
        "how many stars are there?": "one",
    }
    assert asked(draft, how="describe") == {"What color is the star?": "crimson"}
    assert asked(draft, how="none") == {}


class Judge:
    """Lets pass what is called good."""

    def __init__(self):
        self.heard = []

    def judge(self, image, prompt, *, source=None):
        self.heard.append((prompt, source is not None))
        check = SimpleNamespace(question="is it good?", expected="yes")
        answer = "yes" if "good" in prompt else "no"
        return SimpleNamespace(passes=answer == "yes", score=0.5, checks=(SimpleNamespace(check=check, answer=answer),))


def test_a_text_that_can_not_be_asked_about_is_left_out_alone(photos, built):
    for number, (name, text) in enumerate({"a": "a good one", "b": "a long good one"}.items()):
        picture(photos / f"{name}.png", number)
        (photos / f"{name}.txt").write_text(text)
    found = built(questions="none")

    class Short(Judge):
        def judge(self, image, prompt, *, source=None):
            if "long" in prompt:
                self.heard.append(prompt)
                raise PromptError("it is too long; shorten it.")
            return super().judge(image, prompt, source=source)

    judge = Short()
    for _ in range(2):
        heard = dict(judge_samples(found.samples, photos, judge, {}, found.build.work))
        assert sorted(heard.values()) == ["", "the model can't be asked about its text: it is too long; shorten it."]
    assert len(judge.heard) == 2


def test_a_model_is_asked_once_about_each_sample(photos, built, tmp_path):
    for number, name in enumerate(("a", "b", "b_edit")):
        picture(photos / f"{name}.png", number)
    for name, text in (("a", "a good one"), ("b", "a bad one"), ("b_edit", "make it good")):
        (photos / f"{name}.txt").write_text(text)
    found = built(questions="none")
    judge, work = Judge(), found.build.work

    def verdicts(**identity):
        return dict(judge_samples(found.samples, photos, judge, identity, work))

    heard = verdicts(weights="1")
    assert judge.heard == [("a good one", False), ("a bad one", False), ("make it good", True)]
    kept = found.build.leave_out_failing(found.samples, heard)
    assert [sample.prompt for sample in kept] == ["a good one", "make it good"]
    assert found.left_out == [("did not pass", "b.png: the model was asked 'is it good?' and said 'no', not 'yes'")]
    assert verdicts(weights="1") == heard
    assert len(judge.heard) == 3
    verdicts(weights="2")
    assert len(judge.heard) == 6
