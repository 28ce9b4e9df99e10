"""Conversations that their owner keeps: the whole of one comes with every question, and only what is new is computed.

So does a chat over HTTP work. `Chat` is for those who would rather have it kept here: it is exact to the token, where
this has an answer's text encoded again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from .answering import positions, stream_answer
from .array_cache import prompt_key
from .conditioning import image_keys
from .conversation_caches import Kept
from .errors import OptionError, PromptError
from .images import load_images
from .models.qwen2 import empty_cache
from .prompts import IMAGE_TOKEN, IMAGE_TOKEN_INDEX, SYSTEM_PROMPT, check_text, encode_prompt
from .tokenizer import IM_END, IM_START

if TYPE_CHECKING:
    from PIL import Image

    from .generation_options import AnswerSettings
    from .images import ImageSource
    from .parts import Parts
    from .results import AnswerToken
    from .tokenizer import Tokenizer


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says in a conversation.

    Attributes:
        role: who.
        text: what; it may be empty beside images.
        images: a user's, shown before the text, in order; one, or a list of several, each as in `MobileO.edit`.
    """

    role: Role
    text: str
    images: ImageSource | Sequence[ImageSource] = ()


@dataclass(frozen=True)
class Conversation:
    """What a model reads of a conversation.

    Attributes:
        ids: of its tokens, with the head of the answer; `prompts.IMAGE_TOKEN_INDEX` in the places of images.
        images: in the order of their places.
    """

    ids: list[int]
    images: list[Image.Image]


def read_conversation(parts: Parts, turns: Sequence[Turn], *, system_prompt: str = SYSTEM_PROMPT) -> Conversation:
    """Checks a conversation and encodes it. The images are read; nothing is computed.

    Args:
        parts: of the model.
        turns: what was said. Where the last turn is the assistant's, the answer goes on with it.
        system_prompt: said first where no system turn is; none where it is empty.

    Raises:
        PromptError: nobody asks anything, a text can't be read, or all is longer than the model's context.
        ImageError: an image can't be read.
        OptionError: there is no such role, or another than the user shows images.
    """
    if not any(turn.role == "user" for turn in turns):
        raise PromptError("The conversation has no turn of the user; ask something.")
    if turns[0].role != "system":
        turns = [Turn("system", system_prompt), *turns]
    context = parts.config.llm.max_position_embeddings
    ids: list[int] = []
    images: list[Image.Image] = []
    for i, turn in enumerate(turns):
        shown = load_images(turn.images)
        if turn.role not in get_args(Role) or (shown and turn.role != "user"):
            raise OptionError(f"a turn of {turn.role!r} with {len(shown)} images is not possible; see `Turn`.")
        answered = turn.role == "assistant" and i == len(turns) - 1
        ids += _turn_ids(parts.tokenizer, turn, len(shown), context, is_open=answered)
        images += shown
        if i == len(turns) - 1 and turn.role != "assistant":
            ids += parts.tokenizer.encode(_head("assistant"))
        if (length := positions(parts, ids)) >= context:
            raise PromptError(
                f"The conversation takes {length} positions at least and the model's context has {context}; shorten "
                "it, or start a new one."
            )
    return Conversation(ids, images)


def _head(role: str) -> str:
    return f"{IM_START}{role}\n"


def _turn_ids(tokenizer: Tokenizer, turn: Turn, images: int, context: int, *, is_open: bool) -> list[int]:
    if turn.role == "assistant":
        if not turn.text.strip():
            return tokenizer.encode(_head(turn.role)) if is_open else []  # it did something else than to speak
        # As it was computed: the head, the tokens of the answer, its end. An answer may hold what marks an image in a
        # prompt; its halves, encoded apart, are text.
        check_text(turn.text.replace(IMAGE_TOKEN, "image"), "answer")
        *before, last = turn.text.split(IMAGE_TOKEN)
        pieces = [_head(turn.role), *(part for piece in before for part in (piece + IMAGE_TOKEN[:-1], IMAGE_TOKEN[-1]))]
        pieces += [last, *([] if is_open else [f"{IM_END}\n"])]
        return [i for piece in pieces for i in encode_prompt(tokenizer, piece, context=context)]
    if turn.role == "system" and not turn.text.strip():
        return []
    if turn.text or not images:
        check_text(turn.text, "question" if turn.role == "user" else "system prompt")
    shown = f"{IMAGE_TOKEN}\n" * images
    return encode_prompt(tokenizer, f"{_head(turn.role)}{shown}{turn.text}{IM_END}\n", context=context)


def stream_conversation(
    parts: Parts, conversation: Conversation, settings: AnswerSettings
) -> Generator[AnswerToken, None, None]:
    """Answers a conversation. Where networks are kept, what was read of it before is not computed again.

    What it has read is kept in turn, with the answer, also if the generator is closed early.

    Raises:
        NotFiniteError: see `stream_answer`.
    """
    ids, images = conversation.ids, conversation.images
    if not parts.keep_loaded:
        yield from stream_answer(parts, ids, images, empty_cache(parts.config.llm.num_hidden_layers), settings)
        return
    key = prompt_key(ids, image_keys(parts, images))
    networks = ("llm", *(("vision_tower", "mm_projector") if images else ()))
    count, cache = parts.conversations.take(key, parts.version) or (0, empty_cache(parts.config.llm.num_hidden_layers))
    new = images[ids[:count].count(IMAGE_TOKEN_INDEX) :]
    tokens: list[int] = []

    def keep() -> None:
        length = positions(parts, ids)
        read = min(length + len(tokens), *(layer.offset for layer in cache))  # a token more may be computed already
        parts.conversations.put(Kept((*key, *tokens[: read - length]), cache, networks, version))

    try:
        for token in stream_answer(parts, ids[count:], new, cache, settings, keep_beginning=False):
            if not tokens:
                version = parts.version(networks)  # all of them are loaded now
            tokens.append(token.token)
            yield token
    except GeneratorExit:
        keep()
        raise
    keep()  # but not after an error or an interruption, of which the cache may hold anything
