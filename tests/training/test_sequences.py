from __future__ import annotations

from pathlib import Path

import pytest

from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX, ask_prompt, edit_prompt, encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.sequences import (
    TokenSequence,
    answer_sequence,
    drawing_sequence,
    preview,
    upstream_pair_sequence,
    upstream_sequence,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.load(tiny_model)


def predicted(sequence: TokenSequence) -> list[int]:
    assert len(sequence.input_ids) == len(sequence.labels)
    for token, label in zip(sequence.input_ids, sequence.labels, strict=True):
        assert label in (token, IGNORED_LABEL)
    return [label for label in sequence.labels if label != IGNORED_LABEL]


def test_a_drawing_is_requested_as_in_use(tokenizer: Tokenizer) -> None:
    drawing = drawing_sequence(tokenizer, "a cat", edit=False)
    assert list(drawing.input_ids) == encode_prompt(tokenizer, generate_prompt("a cat"))
    edit = drawing_sequence(tokenizer, "a cat", edit=True)
    assert list(edit.input_ids) == encode_prompt(tokenizer, edit_prompt("a cat"))
    assert (drawing.images, edit.images) == (0, 1)
    assert predicted(drawing) == predicted(edit) == []


def test_an_answer_and_its_end_are_predicted(tokenizer: Tokenizer) -> None:
    sequence = answer_sequence(tokenizer, "what colour is it?", "red")
    prompt = encode_prompt(tokenizer, ask_prompt("what colour is it?"))
    assert list(sequence.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decode(predicted(sequence)) == "red<|im_end|>"
    assert list(sequence.input_ids[len(prompt) :]) == predicted(sequence)
    assert sequence.predicted == len(predicted(sequence))


def test_upstream_has_one_sequence(tokenizer: Tokenizer) -> None:
    sequence = upstream_sequence(tokenizer, "make it red", "what is it?", "a cat", edit=True)
    assert sequence.input_ids[0] == IMAGE_TOKEN_INDEX
    assert tokenizer.decode(sequence.input_ids[1:]) == (
        "<|im_start|>user\nPlease edit the provided image according to the following description: make it red"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nwhat is it?<|im_start|>assistant\na cat<|im_end|>\n"
    )
    assert tokenizer.decode(predicted(sequence)) == (
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n"
    )


def test_upstream_pairs_have_a_system_turn_and_no_image(tokenizer: Tokenizer) -> None:
    sequence = upstream_pair_sequence(tokenizer, "a cat")
    assert sequence.images == 0
    assert tokenizer.decode(sequence.input_ids) == generate_prompt("a cat") + "<|im_end|>\n"
    assert tokenizer.decode(predicted(sequence)) == "<|im_start|>assistant\n<|im_end|>\n"


def test_positions_count_image_tokens() -> None:
    sequence = TokenSequence((5, IMAGE_TOKEN_INDEX, 6, IMAGE_TOKEN_INDEX), (5, IGNORED_LABEL, 6, IGNORED_LABEL))
    assert sequence.positions(16) == 2 + 32
    assert sequence.predicted == 1  # nothing is before the first


def test_preview_marks_images_and_what_is_predicted(tokenizer: Tokenizer) -> None:
    text = preview(answer_sequence(tokenizer, "what?", "red"), tokenizer.decode, 16)
    assert "user\n<image x 16>\nwhat?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n⟦red<|im_end|>⟧")
