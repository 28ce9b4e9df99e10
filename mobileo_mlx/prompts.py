"""What the model reads: the conversation's format (ChatML), the tasks' prefixes, and where images stand.

A prompt is a string in which each `<image>` marks the place of one image's features. Among token ids that
place is `IMAGE_TOKEN_INDEX`, which is no row of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import PromptError
from .tokenizer import IM_END, IM_START

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_INDEX = -200
SYSTEM_PROMPT = "You are a helpful assistant."
GENERATE_PREFIX = "Please generate image based on the following caption: "
EDIT_PREFIX = "Please edit the provided image according to the following description: "


def check_text(text: str, what: str = "prompt") -> str:
    """Returns `text` unchanged when it can be sent to the model.

    Args:
        text: what a user typed.
        what: what the message calls it, such as "question" or "negative prompt".

    Raises:
        PromptError: it is empty, is not valid Unicode, or holds a literal `<image>`, which would stand for an
            image that is not there.
    """
    if not text.strip():
        raise PromptError(f"The {what} is empty; say in words what you want.")
    if IMAGE_TOKEN in text:
        raise PromptError(
            f"The {what} holds the literal text {IMAGE_TOKEN}, which marks the place of an image; write it another way."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"The {what} is not valid Unicode text; save or type it as UTF-8.") from error
    return text


def first_turn(text: str, *, images: int = 0, system_prompt: str = SYSTEM_PROMPT) -> str:
    """A conversation's beginning: system turn, the user's first turn, and the head of the answer.

    Args:
        text: what the user says.
        images: how many images come before the text, each on a line of its own.
        system_prompt: what the system turn says; there is no system turn when it is empty.
    """
    system = _turn("system", system_prompt) if system_prompt else ""
    return system + _turn("user", f"{IMAGE_TOKEN}\n" * images + text) + _turn("assistant", "")


def next_turn(text: str, *, images: int = 0) -> str:
    """What follows a finished answer: its end, the user's next turn, and the head of the next answer.

    The answer's own `<|im_end|>` is written here, so it must not have been fed to the model before.
    """
    return f"{IM_END}\n" + first_turn(text, images=images, system_prompt="")


def ask_prompt(text: str, images: int = 1) -> str:
    """A question about one image or several."""
    return first_turn(text, images=images)


def generate_prompt(caption: str) -> str:
    """The request to draw an image."""
    return first_turn(GENERATE_PREFIX + caption)


def edit_prompt(instruction: str) -> str:
    """The request to change one image."""
    return first_turn(EDIT_PREFIX + instruction, images=1)


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, context: int | None = None) -> list[int]:
    """Token ids of a prompt, `IMAGE_TOKEN_INDEX` for each literal `<image>` in it.

    The pieces between images are encoded apart from each other, as in the original. There `<image>` is a token
    of the vocabulary too, but a prompt never becomes it.

    Args:
        tokenizer: encodes.
        prompt: with the conversation's format around it.
        context: positions of the model, where a prompt that is far beyond them is to be refused before it is encoded.

    Raises:
        PromptError: it is.
    """
    if context is not None and len(prompt) > context and (fewest := tokenizer.fewest_tokens(prompt)) > context:
        raise PromptError(
            f"The prompt takes {fewest} positions at least and the model's context has {context}; shorten it."
        )
    first, *others = (tokenizer.encode(piece) for piece in prompt.split(IMAGE_TOKEN))
    ids = list(first)
    for piece in others:
        ids += [IMAGE_TOKEN_INDEX, *piece]
    return ids


def _turn(role: str, text: str) -> str:
    """One turn. Without text it stays open, as the original leaves it: so an answer is asked for."""
    return f"{IM_START}{role}\n" + (f"{text}{IM_END}\n" if text else "")
