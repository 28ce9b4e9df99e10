"""A conversation whose keys and values are kept, so that a turn pays only for what is new."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from .array_cache import prompt_key
from .conditioning import splice
from .decoding import AnswerOptions, Sampling, decode
from .errors import OptionError, PromptError
from .images import load_image
from .models.qwen2 import KVCache, Qwen2Model
from .prompts import IMAGE_TOKEN_INDEX, SYSTEM_PROMPT, check_text, encode_prompt, first_turn, next_turn
from .results import Answer, AnswerToken, Message
from .tokenizer import IM_END

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .pipeline import ImageSource, MobileO


class Chat:
    """Turns of questions and answers about any number of images.

    Attributes:
        messages: what was said so far.
        model: the model that answers; `chat.model.generate(...)` draws.
    """

    def __init__(self, model: MobileO, *, system_prompt: str = SYSTEM_PROMPT):
        self.model = model
        self.messages: list[Message] = []
        self._system_prompt = system_prompt
        self._open: weakref.ref[Generator] | None = None  # the turn that was started last
        self.clear()

    def clear(self) -> None:
        """Forgets everything that was said."""
        self._finish()
        self.messages.clear()
        self._forget_cache()
        self._answer: list[int] = []  # the last answer's tokens
        self._answer_start = 0  # where it starts in the cache

    def _forget_cache(self) -> None:
        self._cache = [KVCache() for _ in range(self.model.config.llm.num_hidden_layers)]

    def send(
        self, text: str, *, images: ImageSource | Sequence[ImageSource] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """The whole answer; takes what `stream` takes."""
        return Answer.of(list(self.stream(text, images=images, **options)))

    def stream(
        self,
        text: str,
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float | None = None,
        seed: int = 0,
    ) -> Generator[AnswerToken, None, None]:
        """Says `text` and yields the answer's tokens.

        Closing the iterator early leaves the chat usable, with the part of the answer that was yielded. Where
        not even one token was, the turn is as if it had not been. A new turn closes the one before.

        Args:
            text: the user's turn.
            images: shown before the text, in order; each a path, the bytes of a file, or a Pillow image.
            max_tokens: at most; fewer where the context ends.
            temperature, top_p, repetition_penalty, seed: see `mobileo_mlx.decoding.Sampling`.

        Raises:
            PromptError: the text is empty, or the conversation has become longer than the model's context.
            ImageError: an image can't be read.
            OptionError: an option is out of range.
            CheckpointError: a component that this needs is missing or does not fit the configuration.
        """
        sampling = Sampling(temperature, top_p, repetition_penalty, seed)
        if max_tokens < 1:
            raise OptionError(f"{max_tokens} tokens are not possible; choose 1 or more.")
        check_text(text, "question")
        loaded = [load_image(image) for image in _listed(images)]
        vision = ("vision_tower", "mm_projector") if loaded else ()
        self.model.require("llm", *(() if self.model.checkpoint.tied else ("lm_head",)), *vision)
        self._finish()
        turn = self._stream(text, loaded, max_tokens, sampling)
        # Weakly, so that an iterator that nobody holds any more is closed at once.
        self._open = weakref.ref(turn)
        return turn

    def _finish(self) -> None:
        """Closes the turn before, where its iterator was left open."""
        turn = None if self._open is None else self._open()
        if turn is not None:
            turn.close()

    def _stream(
        self, text: str, images: list, max_tokens: int, sampling: Sampling
    ) -> Generator[AnswerToken, None, None]:
        model, tokenizer = self.model, self.model.tokenizer
        if not self.messages:
            self._forget_cache()  # a turn that was interrupted may have left something
        ids = self._new_ids(text, len(images))
        config = model.config
        positions = self._positions(ids)
        start = self._cache[0].offset
        room = config.llm.max_position_embeddings - start - positions
        if room < 1:
            raise PromptError(
                f"The prompt takes {start + positions} positions and the model's context has "
                f"{config.llm.max_position_embeddings}; shorten it, or start a new conversation."
            )
        sampling.prepare()
        mx.reset_peak_memory()
        begin = time.perf_counter()
        computed = positions
        prefix: list[int] = []
        keys = model.image_keys(images)
        if images and not self.messages:
            place = max(i for i, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX) + 1
            prefix, ids = ids[:place], ids[place:]
        known = ("prefix", *prompt_key(prefix, keys))
        if prefix and model.keep_loaded and known in model.recall:
            features, computed = [], self._positions(ids)
        else:
            features = model.image_features(images, keys)
        seen = time.perf_counter()
        model.stage("llm", "lm_head")
        # The head first: where it is quantized while loading, its whole weight, the largest, is not added to the rest.
        lm_head, llm = model.lm_head(), model.component("llm")
        ready = time.perf_counter()
        if prefix:
            kept = model.recalled(known, lambda: _read(llm, prefix, features))
            self._cache = [KVCache.holding(k, v) for k, v in zip(kept[::2], kept[1::2], strict=True)]
            features = []
        embeds = splice(llm.embed_tokens, [ids], features).inputs_embeds
        end = tokenizer.token_id(IM_END)
        eos = (*config.eos_token_ids, *([] if end is None else [end]))
        words, said, first = tokenizer.stream(), "", 0.0
        previous = (self._answer, self._answer_start)
        tokens: list[int] = []
        try:
            for decoded in decode(
                llm,
                lm_head,
                embeds,
                self._cache,
                max_tokens=min(max_tokens, room),
                eos_token_ids=eos,
                sampling=sampling,
            ):
                if not tokens:
                    first = time.perf_counter()
                    self._answer, self._answer_start = tokens, start + positions
                tokens.append(decoded.token)
                segment = words.add(decoded.token)
                if decoded.finish_reason is None:
                    said += segment
                    yield AnswerToken(segment, decoded.token, None, computed)
                    continue
                segment += words.flush()
                said += segment
                timings = {"vision": seen - begin, "prefill": first - ready, "decode": time.perf_counter() - first}
                yield AnswerToken(
                    segment, decoded.token, decoded.finish_reason, computed, timings, mx.get_peak_memory()
                )
        finally:
            # An interruption can come between two layers, or between a token's computation and its yield: what stays
            # is what all layers have and the caller was given.
            given = start + positions + len(tokens) if tokens else start
            settled = min(given, *(layer.offset for layer in self._cache))
            for layer in self._cache:
                layer.offset = settled
            if tokens:
                self.messages += [Message("user", text, len(images)), Message("assistant", said.strip())]
            else:
                self._answer, self._answer_start = previous

    def _positions(self, ids: list[int]) -> int:
        """How many positions ids take in the context."""
        return len(ids) + ids.count(IMAGE_TOKEN_INDEX) * (self.model.config.image_tokens - 1)

    def _new_ids(self, text: str, images: int) -> list[int]:
        """What the model has not read yet: the rest of the last answer, its end, and this turn."""
        tokenizer = self.model.tokenizer
        if not self.messages:
            return encode_prompt(tokenizer, first_turn(text, images=images, system_prompt=self._system_prompt))
        end = tokenizer.token_id(IM_END)
        ids = encode_prompt(tokenizer, next_turn(text, images=images))
        unread = self._answer[self._cache[0].offset - self._answer_start :]
        if self._answer[-1] == end:
            return unread + ids[1:]  # the answer ends as `next_turn` begins
        # Another end token than the template's would be noise in the middle of a conversation.
        return [i for i in unread if i not in self.model.config.eos_token_ids] + ids


def _read(llm: Qwen2Model, ids: list[int], features: list[mx.array]) -> list[mx.array]:
    """The keys and values of a conversation's beginning, (1, kv_heads, T, head_dim), in turn for each layer."""
    cache = llm.make_cache()
    for layer in cache:
        layer.step = 1  # no room for more: it is to be kept
    embeds = splice(llm.embed_tokens, [ids], features).inputs_embeds
    llm(embeds, cache=cache, last_only=True)
    return [x for layer in cache for x in layer.fetch()]


def _listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]
