"""A conversation whose keys and values are kept, so that a turn pays only for what is new."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from .answering import positions, stream_answer
from .errors import NotFiniteError
from .generation_options import AnswerOptions, AnswerSettings
from .images import ImageSource, load_images
from .models.qwen2 import KVCache, empty_cache
from .prompts import SYSTEM_PROMPT, check_text, encode_prompt, first_turn, next_turn
from .results import Answer, AnswerToken, Message
from .threads import close
from .tokenizer import IM_END

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from .parts import Parts


class Chat:
    """Turns of questions and answers about any number of images.

    Attributes:
        messages: what was said so far.
    """

    def __init__(self, parts: Parts, *, system_prompt: str = SYSTEM_PROMPT):
        self.messages: list[Message] = []
        self._parts = parts
        self._system_prompt = system_prompt
        self._open: weakref.ref[Generator] | None = None  # the turn that was started last
        self._forget()

    def clear(self) -> None:
        """Forgets everything that was said."""
        with self._parts.lock:
            self._close_turn()
            self._forget()

    def _forget(self) -> None:
        self.messages.clear()
        self._cache = self._empty_cache()
        self._answer: list[int] = []  # the last answer's tokens
        self._answer_start = 0  # where it starts in the cache

    def send(
        self, text: str, *, images: ImageSource | Sequence[ImageSource] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """The whole answer; takes what `stream` takes."""
        with self._parts.lock:
            return Answer.of(list(self.stream(text, images=images, **options)))

    def stream(
        self,
        text: str,
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        **options: Unpack[AnswerOptions],
    ) -> Generator[AnswerToken, None, None]:
        """Says `text` and yields the answer's tokens.

        Closing the iterator early leaves the chat usable, with the part of the answer that was yielded. If no token
        was yielded, the turn is rolled back. A new turn closes the one before.

        Args:
            text: the user's turn.
            images: shown before the text, in order; one, or a list of several, each as in `MobileO.edit`.
            options: see `mobileo_mlx.generation_options.AnswerOptions`.

        Raises:
            PromptError: the text is empty, or the conversation has become longer than the model's context.
            ImageError: an image can't be read.
            OptionError: an option is out of range.
            CheckpointError: a component that this needs is missing or does not fit the configuration.
            NotFiniteError: a network gives values that are not finite; the whole turn is rolled back.
        """
        settings = AnswerSettings(**options)
        check_text(text, "question")
        loaded = load_images(images)
        self._parts.require("answer", *(["vision"] if loaded else []))
        with self._parts.lock:  # another thread may be computing a token of the turn before, or beginning a turn
            self._close_turn()
            turn = self._turn(text, loaded, settings)
            # Weakly, so that an iterator that nobody holds any more is closed at once.
            self._open = weakref.ref(turn)
        return self._parts.in_turns(turn)

    def _close_turn(self) -> None:
        """Closes the turn before, where its iterator was left open."""
        turn = None if self._open is None else self._open()
        if turn is not None:
            close(turn)

    def _turn(
        self, text: str, images: list[Image.Image], settings: AnswerSettings
    ) -> Generator[AnswerToken, None, None]:
        if not self.messages:
            self._cache = self._empty_cache()  # a turn that was interrupted may have left something
        ids = self._new_ids(text, len(images))
        answer_start = self._cache[0].offset + positions(self._parts, ids)
        previous, tokens, said = (self._answer, self._answer_start), [], ""
        start = self._cache[0].offset
        try:
            for token in stream_answer(self._parts, ids, images, self._cache, settings):
                tokens.append(token.token)
                said += token.text
                self._answer, self._answer_start = tokens, answer_start
                yield token
        except NotFiniteError:
            tokens = []  # what the cache holds of them may not be finite
            raise
        finally:
            self._roll_back(answer_start + self._positions_kept(tokens) if tokens else start)
            if tokens:
                self.messages += [Message("user", text, len(images)), Message("assistant", said.strip())]
            else:
                self._answer, self._answer_start = previous

    def _roll_back(self, offset: int) -> None:
        """Shortens the cache to `offset` positions at most.

        An interruption can come between two layers, or between a token's computation and its yield: what stays is
        what all layers have and the caller was given.
        """
        length = min(offset, *(layer.offset for layer in self._cache))
        for layer in self._cache:
            layer.offset = length

    def _positions_kept(self, tokens: list[int]) -> int:
        """How many tokens of an answer may stay in the cache: not an end token other than the template's, see below."""
        foreign = tokens[-1] in self._parts.config.eos_token_ids and tokens[-1] != self._parts.tokenizer.token_id(
            IM_END
        )
        return len(tokens) - foreign

    def _empty_cache(self) -> list[KVCache]:
        return empty_cache(self._parts.config.llm.num_hidden_layers)

    def _new_ids(self, text: str, images: int) -> list[int]:
        """What the model has not read yet: the rest of the last answer, its end, and this turn."""
        tokenizer, context = self._parts.tokenizer, self._parts.config.llm.max_position_embeddings
        if not self.messages:
            turn = first_turn(text, images=images, system_prompt=self._system_prompt)
            return encode_prompt(tokenizer, turn, context=context)
        ids = encode_prompt(tokenizer, next_turn(text, images=images), context=context)
        unread = self._answer[self._cache[0].offset - self._answer_start :]
        if self._answer[-1] == tokenizer.token_id(IM_END):
            return unread + ids[1:]  # the answer ends as `next_turn` begins
        # Another end token than the template's would be noise in the middle of a conversation.
        return [i for i in unread if i not in self._parts.config.eos_token_ids] + ids
