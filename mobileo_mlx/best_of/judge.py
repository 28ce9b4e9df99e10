"""What the model itself says about an image: answers read as probabilities, and made one score.

The tower runs once for each image, the beginning of the conversation is read once, and all questions follow it in one
batch. Nothing is sampled: the probability of an answer is that of its first token, among those of the other answers
(as VQAScore does it for "yes": Lin et al., arXiv 2404.01291).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..conditioning import embed_prompts, read_images
from ..decoding import decode, prefill
from ..errors import CheckpointError, PromptError
from ..models.qwen2 import KVCache
from ..not_finite import check_finite, explained
from ..prompts import IMAGE_TOKEN_INDEX, ask_prompt, encode_prompt
from ..tokenizer import IM_END
from .checks import ARTICLE, DESCRIBE, Check, change_checks, content_checks, prompt_checks, result_check
from .phrases import COLOURS, NUMBERS, changed, read_instruction, read_text

if TYPE_CHECKING:
    from PIL import Image

    from ..parts import Parts
    from ..tokenizer import Tokenizer

_CANT_TELL = 0.4
_DESCRIPTION = 64  # tokens at most


@dataclass(frozen=True)
class Answered:
    """A check, and what the model said.

    Attributes:
        check: the question.
        answer: the likeliest of its answers.
        probability: of the expected one, among all of them.
    """

    check: Check
    answer: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the answer is the expected one, or the model can't tell, as its answer to the mirrored question says.

        Where that is the same, the probability is near 0.5.
        """
        return self.answer == self.check.expected or (self.check.mirror != "" and self.probability > _CANT_TELL)


@dataclass(frozen=True)
class Judgement:
    """What the model says about an image.

    Attributes:
        score: 0 to 1.
        passes: whether all checks were answered as expected.
        checks: the questions with their answers.
    """

    score: float
    passes: bool
    checks: tuple[Answered, ...]

    def metadata(self) -> list[dict[str, Any]]:
        """The checks as JSON can hold them."""
        return [
            {
                "question": one.check.question,
                "expected": one.check.expected,
                "answer": one.answer,
                "probability": round(one.probability, 4),
            }
            for one in self.checks
        ]


def require_judge(parts: Parts, prompt: str, *, edits: bool) -> None:
    """Checks that the model can be asked whether images show what a prompt says.

    Args:
        parts: the networks.
        prompt: what is asked about.
        edits: whether it is an instruction.

    Raises:
        CheckpointError: it has no vision tower or no language model's head.
        PromptError: with the image, a question about the prompt is longer than the model's context.
    """
    try:
        parts.require("vision", "answer")
    except CheckpointError as error:
        raise CheckpointError(f"this model can't judge its own images; draw without best-of, or: {error}") from error
    context = parts.config.llm.max_position_embeddings
    change = read_instruction(prompt) if edits else None
    checks = prompt_checks(prompt) if not edits else [result_check(prompt)] if change is None else change_checks(change)
    longest = max((check.question for check in checks), key=len)
    ids = encode_prompt(parts.tokenizer, ask_prompt(longest), context=context)
    if (positions := len(ids) + parts.config.image_tokens - 1) > context:
        raise PromptError(
            f"What the model would be asked about an image takes {positions} positions and its context has {context}; "
            f"shorten the {'instruction' if edits else 'prompt'}."
        )


class Judge:
    """Asks the same questions about several images.

    Args:
        parts: the networks.
        prompt: what the images are to show; with `source` the instruction that they follow.
        source: the image before the edit.
    """

    def __init__(self, parts: Parts, prompt: str, *, source: Image.Image | None = None):
        self._parts, self._prompt, self._edits = parts, prompt, source is not None
        self._checks = [] if self._edits else prompt_checks(prompt)
        self._can_tell = True
        # An image that is not what was asked for. It is read with the first candidates, for the tower's weights.
        self._reference = source
        if source is None and any(check.kind == "whole" for check in self._checks):
            self._reference = _blank(parts.config.image_size)

    def of(self, images: Sequence[Image.Image]) -> list[Judgement]:
        """What the model says about each image.

        Raises:
            NotFiniteError: the features of an image, or the logits, have NaN or infinity among them.
        """
        reference = [] if self._reference is None else [self._reference]
        features = read_images(self._parts, [*reference, *images])
        self._parts.enter("answer")
        if reference:
            self._look_at_reference(features.pop(0))
        found = [judgement(answers(self._parts, one, self._checks)) for one in features]
        return found if self._can_tell else [replace(one, passes=False) for one in found]

    def _look_at_reference(self, features: mx.array) -> None:
        if self._edits:
            self._checks = edit_checks(self._parts, self._prompt, features)
        whole = [check for check in self._checks if check.kind == "whole"]
        # Whoever says yes of a blank image, or of the image before the edit, can't tell.
        self._can_tell = not any(one.right for one in answers(self._parts, features, whole)) if whole else True
        self._reference = None


def _blank(side: int) -> Image.Image:
    from PIL import Image

    return Image.new("RGB", (side, side), (128, 128, 128))


def judge_images(
    parts: Parts, images: Sequence[Image.Image], prompt: str, *, source: Image.Image | None = None
) -> list[Judgement]:
    """Whether each image shows what a prompt says; takes what `Judge` takes."""
    return Judge(parts, prompt, source=source).of(images)


def judgement(answers: Sequence[Answered]) -> Judgement:
    """One score of many answers: the probability that all of them are right, were they independent."""
    return Judgement(math.prod(one.probability for one in answers), all(one.right for one in answers), tuple(answers))


def answers(parts: Parts, features: mx.array, checks: Sequence[Check]) -> list[Answered]:
    """The answers to all checks about one image, of which there are the features; the phase is "answer"."""
    questions = list(dict.fromkeys(text for one in checks for text in (one.question, one.mirror) if text))
    rows = dict(zip(questions, first_logits(parts, features, questions), strict=True))
    return [_answered(parts.tokenizer, check, rows[check.question], rows.get(check.mirror)) for check in checks]


def edit_checks(parts: Parts, instruction: str, features: mx.array) -> list[Check]:
    """The questions about an edited image: what the instruction says, and what should have stayed.

    What stays is known from the model's own description of the source, where that is understood. Else questions about
    the source have to be answered in the same way afterwards.

    Args:
        parts: the networks; the phase is "answer".
        instruction: of the edit.
        features: of the image before it, (image_tokens, hidden_size).
    """
    change = read_instruction(instruction)
    if change is None:
        return [result_check(instruction)]
    content = read_text(_description(parts, features))
    after = None if content is None else changed(content, change)
    found = change_checks(change)
    if after is not None:
        found += content_checks(after)
    else:
        kept = [Check("what color is the background?", COLOURS[0], COLOURS, "kept")] if not change.background else []
        if change.kind not in ("add", "remove"):
            kept.append(Check("how many objects are there?", NUMBERS[0], NUMBERS, "kept"))
        before = answers(parts, features, kept) if kept else []
        found += [replace(check, expected=one.answer) for check, one in zip(kept, before, strict=True)]
    return list({check.question: check for check in found}.values())


def _description(parts: Parts, features: mx.array) -> str:
    """What the model says when it is asked to describe an image."""
    llm, lm_head, tokenizer = parts.llm, parts.lm_head, parts.tokenizer
    ids = encode_prompt(tokenizer, ask_prompt(DESCRIBE))
    end = tokenizer.token_id(IM_END)
    ends = {*parts.config.eos_token_ids, *([] if end is None else [end])}
    embeds = embed_prompts(llm.embed_tokens, [ids], [features]).inputs_embeds
    tokens = decode(llm, lm_head, embeds, llm.make_cache(), max_tokens=_DESCRIPTION, eos_token_ids=tuple(ends))
    return tokenizer.decode([one.token for one in explained(parts, tokens) if one.token not in ends])


def first_logits(parts: Parts, features: mx.array, questions: Sequence[str]) -> np.ndarray:
    """The logits of the first token of the answer to each question about one image, (Q, vocab_size) float32.

    Args:
        parts: the networks; the phase is "answer".
        features: of the image, (image_tokens, hidden_size).
        questions: one or more.
    """
    prompts = [encode_prompt(parts.tokenizer, ask_prompt(question)) for question in questions]
    split = prompts[0].index(IMAGE_TOKEN_INDEX) + 1
    lm_head, llm = parts.lm_head, parts.llm
    cache = llm.make_cache()
    prefill(llm, embed_prompts(llm.embed_tokens, [prompts[0][:split]], [features]).inputs_embeds, cache)
    rows = len(questions)
    shared = [
        KVCache.holding(*(mx.broadcast_to(array, (rows, *array.shape[1:])) for array in layer.state)) for layer in cache
    ]
    # Rows end at different places. What follows a row's end is padding that it does not look at.
    inputs = embed_prompts(llm.embed_tokens, [ids[split:] for ids in prompts])
    (states,) = llm.hidden_states(inputs.inputs_embeds, 1, cache=shared)  # (Q, T, hidden_size)
    ends = mx.array([len(ids) - split - 1 for ids in prompts])
    last = states[mx.arange(rows), ends][:, None]
    logits = lm_head(last)[:, 0].astype(mx.float32)
    check_finite(parts, "llm", last)
    check_finite(parts, "lm_head", logits)
    return np.array(logits)


def _answered(tokenizer: Tokenizer, check: Check, logits: np.ndarray, mirror: np.ndarray | None) -> Answered:
    """Reads an answer from the logits of its first token, (vocab_size,), and from those of the mirrored question."""
    tokens = _answer_tokens(tokenizer, check)
    sums = {answer: float(np.logaddexp.reduce(logits[sorted(some)])) for answer, some in tokens.items()}
    if mirror is not None:
        # Whoever always says yes, or always no, says nothing: what both questions have in common is left out.
        back = {answer: float(np.logaddexp.reduce(mirror[sorted(some)])) for answer, some in tokens.items()}
        yes, no = check.answers
        sums = {yes: (sums[yes] + back[no]) / 2, no: (sums[no] + back[yes]) / 2}
    total = np.logaddexp.reduce(list(sums.values()))
    return Answered(check, max(sums, key=sums.__getitem__), float(np.exp(sums[check.expected] - total)))


def _answer_tokens(tokenizer: Tokenizer, check: Check) -> dict[str, set[int]]:
    """The tokens with which each answer begins; those that can't be told from the expected one are left out."""
    found = {answer: _first_tokens(tokenizer, answer) for answer in check.answers}
    begun = Counter(token for some in found.values() for token in some)
    own = {answer: {token for token in some if begun[token] == 1} for answer, some in found.items()}
    if not own[check.expected]:
        expected = tokenizer.encode(check.expected)[0]
        own = {answer: some - {expected} for answer, some in own.items()} | {check.expected: {expected}}
    return {answer: some for answer, some in own.items() if some}


def _first_tokens(tokenizer: Tokenizer, answer: str) -> set[int]:
    """The tokens with which an answer may begin: in small letters or not, and a number also as a digit."""
    forms = ["a", "an"] if answer == ARTICLE else [answer]
    forms += [form.capitalize() for form in forms]
    if answer in NUMBERS[:9]:  # "10" begins with the "1" of one
        forms.append(str(NUMBERS.index(answer) + 1))
    return {tokenizer.encode(form)[0] for form in forms}
