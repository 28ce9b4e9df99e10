"""What the bundled model says about rendered pictures, whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.world import Object, Scene, render
from mobileo_mlx import MobileO
from mobileo_mlx.best_of.checks import YES_NO, Check
from mobileo_mlx.best_of.judge import _answer_tokens, _answered, first_logits
from mobileo_mlx.conditioning import embed_prompts, read_images
from mobileo_mlx.errors import CheckpointError, PromptError
from mobileo_mlx.prompts import ask_prompt, encode_prompt

STAR, CIRCLE = Object("star", "red", 4, 2), Object("circle", "blue", 4, 6)


@pytest.fixture(scope="module")
def model() -> MobileO:
    return MobileO.load("tiny")


def picture(*objects: Object, background: str = "white") -> Image.Image:
    return Image.fromarray(render(Scene(objects, background)))


def test_right_and_wrong_prompts(model: MobileO) -> None:
    image = picture(STAR, CIRCLE, background="gray")
    right = model.judge(image, "a red star above a blue circle on a gray background")
    assert right.passes
    assert 0.5 < right.score <= 1
    wrong = {
        "colour": "a pink star above a blue circle on a gray background",
        "position": "a blue circle above a red star on a gray background",
        "background": "a red star above a blue circle on a cyan background",
        "presence": "a red star above a blue square on a gray background",
    }
    for kind, prompt in wrong.items():
        judgement = model.judge(image, prompt)
        assert not judgement.passes
        assert judgement.score < 0.05
        assert kind in {one.check.kind for one in judgement.checks if not one.right}


def test_three_are_not_two(model: MobileO) -> None:
    """Both words begin with the same token in capitals."""
    squares = [Object("square", "red", x, y) for x, y in ((2, 2), (6, 2), (2, 6))]
    assert model.judge(picture(*squares), "three red squares").passes
    judgement = model.judge(picture(*squares), "two red squares")
    assert {one.check.kind: one.answer for one in judgement.checks if not one.right} == {
        "count": "three",
        "described": "three",
        "total": "three",
    }
    for check in (one.check for one in judgement.checks if one.check.kind == "count"):
        tokens = _answer_tokens(model.tokenizer, check)
        assert {"one", "two", "three", "four"} <= tokens.keys()
        assert len(set.union(*tokens.values())) == sum(map(len, tokens.values()))


def test_edits_are_judged_by_what_changes_and_by_what_stays(model: MobileO) -> None:
    before = picture(STAR, CIRCLE)
    pink = Object("star", "pink", 4, 2)
    assert model.judge(picture(pink, CIRCLE), "make the star pink", source=before).passes
    assert not model.judge(before, "make the star pink", source=before).passes
    lost = model.judge(picture(pink), "make the star pink", source=before)
    assert "is there a blue circle?" in {one.check.question for one in lost.checks if not one.right}
    assert model.judge(picture(CIRCLE), "remove the star", source=before).passes
    assert not model.judge(picture(), "remove the star", source=before).passes


def test_who_says_yes_of_a_blank_image_lets_nothing_pass(model: MobileO, monkeypatch: pytest.MonkeyPatch) -> None:
    def always_yes(_parts, _features, questions) -> np.ndarray:
        logits = np.zeros((len(questions), model.config.llm.vocab_size), np.float32)
        logits[:, model.tokenizer.encode("yes")[0]] = 9
        return logits

    monkeypatch.setattr("mobileo_mlx.best_of.judge.first_logits", always_yes)
    judgement = model.judge(picture(STAR), "something that nobody understands")
    assert not judgement.passes
    assert judgement.score > 0.9
    # And mirrored questions that get the same answer say nothing.
    position = model.judge(picture(STAR), "a star above a circle").checks[-1]
    assert position.check.kind == "position"
    assert position.probability == pytest.approx(0.5)
    assert position.right


def test_answers_are_those_of_the_first_token(model: MobileO) -> None:
    """All questions of an image in one batch, of different lengths, as each alone."""
    questions = ["is there a star?", "what color is the background?", "describe the image."]
    (features,) = read_images(model.parts, [picture(STAR)])
    rows = first_logits(model.parts, features, questions)
    for question, row in zip(questions, rows, strict=True):
        ids = encode_prompt(model.tokenizer, ask_prompt(question))
        llm = model.parts.llm
        hidden = llm(embed_prompts(llm.embed_tokens, [ids], [features]).inputs_embeds, last_only=True)
        assert np.allclose(row, np.array(model.parts.lm_head(hidden)[0, 0]), atol=1e-3)


def test_probabilities_are_among_the_answers(model: MobileO) -> None:
    logits = np.full(model.config.llm.vocab_size, 5.0, np.float32)
    for word, value in (("yes", 2.0), ("no", 1.0)):
        logits[sorted(_answer_tokens(model.tokenizer, Check("", word, YES_NO, "presence"))[word])] = -np.inf
        logits[model.tokenizer.encode(word)[0]] = value
    answer = _answered(model.tokenizer, Check("", "no", YES_NO, "presence"), logits, None)
    assert answer.answer == "yes"
    assert answer.probability == pytest.approx(1 / (1 + np.e))


def test_what_can_not_be_judged(model: MobileO, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match="The prompt is empty"):
        model.judge(picture(STAR), " ")

    def lacks(*phases: str) -> None:
        raise CheckpointError("no vision_tower.")

    monkeypatch.setattr(model.parts, "require", lacks)
    with pytest.raises(CheckpointError, match=r"this model can't judge its own images; .*: no vision_tower"):
        model.judge(picture(STAR), "a star")


def test_questions_longer_than_the_context_are_refused_before_anything_is_drawn(model: MobileO) -> None:
    context = model.config.llm.max_position_embeddings
    text = "cat " * (context // 2 - 10)  # can be drawn
    with pytest.raises(PromptError, match=rf"takes \d+ positions and its context has {context}; shorten the prompt"):
        model.stream_generate(text, best_of=2)
    with pytest.raises(PromptError, match="shorten the instruction"):
        model.judge(picture(), text, source=picture())
    with pytest.raises(PromptError, match="shorten it"):
        model.judge(picture(), text * 100)
