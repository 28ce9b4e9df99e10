import json

import pytest

from mobileo_mlx import prompts
from mobileo_mlx.errors import PromptError
from mobileo_mlx.tokenizer import Tokenizer

BUILDERS = {
    "chat": prompts.first_turn,
    "ask": prompts.ask_prompt,
    "generate": prompts.generate_prompt,
    "edit": prompts.edit_prompt,
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


class Letters:
    """A tokenizer that knows letters only, and records what it was asked."""

    def __init__(self):
        self.pieces = []

    def encode(self, text):
        self.pieces.append(text)
        return [ord(letter) for letter in text]


def test_the_prompts_of_the_four_tasks():
    assert prompts.first_turn("Hi") == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompts.ask_prompt("What?") == (
        f"{SYSTEM}<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts.generate_prompt("a cat") == prompts.first_turn(
        "Please generate image based on the following caption: a cat"
    )
    assert prompts.edit_prompt("add a hat") == prompts.ask_prompt(
        "Please edit the provided image according to the following description: add a hat"
    )


def test_several_images_have_a_line_each():
    assert "user\n<image>\n<image>\n<image>\nWhich?<|im_end|>" in prompts.ask_prompt("Which?", images=3)


def test_turns_join_to_one_conversation():
    conversation = prompts.first_turn("One.") + "Two." + prompts.next_turn("Three?", images=1)
    assert conversation == (
        f"{SYSTEM}<|im_start|>user\nOne.<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\n<image>\nThree?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_another_system_prompt_and_none():
    assert prompts.first_turn("Hi", system_prompt="Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )
    assert prompts.first_turn("Hi", system_prompt="").startswith("<|im_start|>user\nHi")


@pytest.mark.parametrize(
    ("prompt", "pieces", "ids"),
    [
        ("ab", ["ab"], [97, 98]),
        ("a<image>b", ["a", "b"], [97, -200, 98]),
        ("<image><image>", ["", "", ""], [-200, -200]),
    ],
)
def test_the_pieces_between_images_are_encoded_apart(prompt, pieces, ids):
    tokenizer = Letters()
    assert prompts.encode_prompt(tokenizer, prompt) == ids
    assert tokenizer.pieces == pieces


def test_text_that_can_be_sent_is_not_changed():
    assert prompts.check_text("  <b> a cat\n") == "  <b> a cat\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The question is empty"),
        (" \n\t", "The question is empty"),
        ("see <image> here", "The question holds the literal text <image>"),
        ("caf\udce9", "The question is not valid Unicode"),
    ],
)
def test_text_that_can_not_be_sent(text, message):
    with pytest.raises(PromptError, match=message):
        prompts.check_text(text, "question")


def test_every_prompt_of_the_reference(reference):
    tokenizer = Tokenizer.load(reference / "qwen2-tokenizer")
    data = json.loads((reference / "prompts" / "prompts.json").read_text(encoding="utf-8"))
    assert data["image_token_index"] == prompts.IMAGE_TOKEN_INDEX
    for item in data["items"]:
        assert set(item["prompts"]) == set(BUILDERS)
        for task, case in item["prompts"].items():
            prompt = BUILDERS[task](item["text"])
            assert prompt == case["prompt"]
            ids = prompts.encode_prompt(tokenizer, prompt)
            assert ids == case["ids"]
            assert [i for i, token in enumerate(ids) if token == -200] == case["image_positions"]


def test_a_continued_chat_has_the_ids_of_the_whole_conversation(reference):
    tokenizer = Tokenizer.load(reference / "qwen2-tokenizer")
    parts = [prompts.first_turn("One."), "Two.", prompts.next_turn("Three?", images=1)]
    ids = [i for part in parts for i in prompts.encode_prompt(tokenizer, part)]
    assert ids == prompts.encode_prompt(tokenizer, "".join(parts))


def test_a_prompt_far_beyond_the_context_is_not_encoded(reference, monkeypatch):
    tokenizer = Tokenizer.load(reference / "qwen2-tokenizer")
    text = "a cat " * 100
    ids = prompts.encode_prompt(tokenizer, text)
    assert prompts.encode_prompt(tokenizer, text, context=len(ids)) == ids
    assert prompts.encode_prompt(tokenizer, text, context=5) == ids  # 600 bytes, and the longest token has 128
    monkeypatch.setattr(Tokenizer, "encode", lambda *arguments: pytest.fail("it was encoded"))
    with pytest.raises(PromptError, match="takes 5 positions at least and the model's context has 4; shorten it"):
        prompts.encode_prompt(tokenizer, text, context=4)
