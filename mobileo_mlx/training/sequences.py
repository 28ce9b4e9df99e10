"""What the language model reads in training: token sequences, and which of their tokens it has to predict.

By default a sample gives two sequences, written as at inference. Upstream packs everything into one: its layouts are
here too, token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..conditioning import IGNORED_LABEL
from ..prompts import (
    EDIT_PREFIX,
    GENERATE_PREFIX,
    IMAGE_TOKEN_INDEX,
    ask_prompt,
    edit_prompt,
    encode_prompt,
    generate_prompt,
)
from ..tokenizer import IM_END, IM_START

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

_ANSWER_HEAD = f"{IM_START}assistant\n"


@dataclass(frozen=True)
class TokenSequence:
    """Token ids and labels of equal length.

    Attributes:
        input_ids: `IMAGE_TOKEN_INDEX` in the place of an image.
        labels: the id where it is to be predicted, `IGNORED_LABEL` elsewhere.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many places for images there are."""
        return self.input_ids.count(IMAGE_TOKEN_INDEX)

    @property
    def predicted(self) -> int:
        """How many tokens are predicted; the first can't be, as nothing is before it."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])

    def positions(self, image_tokens: int) -> int:
        """The length once every image has its `image_tokens`."""
        return len(self.input_ids) + self.images * (image_tokens - 1)


def drawing_sequence(tokenizer: Tokenizer, prompt: str, *, edit: bool) -> TokenSequence:
    """The request for an image, or to edit one, as inference writes it. Nothing is predicted."""
    return _concatenated((encode_prompt(tokenizer, (edit_prompt if edit else generate_prompt)(prompt)), False))


def answer_sequence(tokenizer: Tokenizer, question: str, answer: str) -> TokenSequence:
    """A question about one image as inference writes it; predicted are the answer and its end."""
    answered = [*tokenizer.encode(answer), *tokenizer.encode(IM_END)]
    return _concatenated((encode_prompt(tokenizer, ask_prompt(question)), False), (answered, True))


def upstream_sequence(tokenizer: Tokenizer, prompt: str, question: str, answer: str, *, edit: bool) -> TokenSequence:
    """Upstream's post-training sequence.

    The image comes first, before any text. There is no system turn, and user turns have no end. The request for
    an image is answered with nothing. The heads and ends of both answers are predicted too.
    """
    pieces: list[tuple[list[int], bool]] = [([IMAGE_TOKEN_INDEX], False)]
    for text, reply in (((EDIT_PREFIX if edit else GENERATE_PREFIX) + prompt, ""), (question, answer)):
        pieces += [
            (tokenizer.encode(f"{IM_START}user\n{text}"), False),
            (tokenizer.encode(f"{_ANSWER_HEAD}{reply}{IM_END}\n"), True),
        ]
    return _concatenated(*pieces)


def upstream_pair_sequence(tokenizer: Tokenizer, prompt: str) -> TokenSequence:
    """Upstream's sequence for prompt-image pairs (alignment and SFT): system turn, request, empty answer.

    The answer has labels, though these stages have no loss on text.
    """
    request = generate_prompt(prompt).removesuffix(_ANSWER_HEAD)
    return _concatenated((tokenizer.encode(request), False), (tokenizer.encode(f"{_ANSWER_HEAD}{IM_END}\n"), True))


def preview(sequence: TokenSequence, decode: Callable[[list[int]], str], image_tokens: int) -> str:
    """The sequence for people: images as `<image x N>`, predicted tokens between ⟦ and ⟧.

    Args:
        decode: ids to text.
        image_tokens: how many positions an image takes.
    """
    tokens = zip(sequence.input_ids, sequence.labels, strict=True)
    parts = []
    for (image, predicted), run in groupby(tokens, lambda t: (t[0] == IMAGE_TOKEN_INDEX, t[1] != IGNORED_LABEL)):
        ids = [token for token, _ in run]
        text = f"<image x {image_tokens}>" * len(ids) if image else decode(ids)
        parts.append(f"⟦{text}⟧" if predicted else text)
    return "".join(parts)


def _concatenated(*pieces: tuple[list[int], bool]) -> TokenSequence:
    """Pieces of ids, each with whether it is predicted."""
    ids, labels = [], []
    for piece, predicted in pieces:
        ids += piece
        labels += piece if predicted else [IGNORED_LABEL] * len(piece)
    return TokenSequence(tuple(ids), tuple(labels))
