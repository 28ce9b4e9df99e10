"""Answers, for single questions and for conversations: images, prefill, and text from a stream of tokens."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from .array_cache import prompt_key
from .conditioning import embed_prompts, image_keys, read_images
from .decoding import decode, import_sampling, prefill
from .errors import PromptError
from .generation_options import AnswerSettings
from .models.qwen2 import KVCache
from .not_finite import explained
from .prompts import IMAGE_TOKEN_INDEX
from .results import AnswerToken
from .stop_texts import StopTexts
from .tokenizer import IM_END

if TYPE_CHECKING:
    from PIL import Image

    from .parts import Parts


def positions(parts: Parts, ids: Sequence[int]) -> int:
    """How many positions ids take in the context, images included."""
    return len(ids) + list(ids).count(IMAGE_TOKEN_INDEX) * (parts.config.image_tokens - 1)


def stream_answer(
    parts: Parts,
    ids: list[int],
    images: Sequence[Image.Image],
    cache: list[KVCache],
    settings: AnswerSettings,
    *,
    keep_beginning: bool = True,
) -> Generator[AnswerToken, None, None]:
    """Reads a prompt and yields the tokens of the answer.

    Where networks are kept, a conversation's beginning up to its last image is cached: a second question about the
    same image computes its own words alone.

    Args:
        parts: the networks.
        ids: what the model has not read yet, `IMAGE_TOKEN_INDEX` in the places of the images.
        images: in the order of their places.
        cache: what it has read, one entry a layer; extended in place.
        settings: how long it may be, how tokens are chosen, and what ends it.
        keep_beginning: False where the caller keeps the cache itself.

    Raises:
        PromptError: the prompt and the conversation do not fit into the context.
        NotFiniteError: the features of an image, or the logits of a token, have NaN or infinity among them.
    """
    start, context = cache[0].offset, parts.config.llm.max_position_embeddings
    computed = positions(parts, ids)
    length = start + computed
    free = context - length
    if free < 1:
        raise PromptError(
            f"The prompt takes {length} positions and the model's context has {context}; shorten it, or "
            "start a new conversation."
        )
    import_sampling(settings)
    mx.reset_peak_memory()
    begun = time.perf_counter()
    prefix: list[int] = []
    if images and start == 0 and parts.keep_loaded and keep_beginning:
        split = max(i for i, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX) + 1
        prefix, ids = ids[:split], ids[split:]
    key = ("prefix", *prompt_key(prefix, image_keys(parts, images))) if prefix else ()
    networks = ("vision_tower", "mm_projector", "llm")
    features: list[mx.array] = []
    if prefix and parts.find(key, networks) is not None:
        computed = positions(parts, ids)
    else:
        features = read_images(parts, images)
    seen = time.perf_counter()
    parts.enter("answer")
    lm_head, llm = parts.lm_head, parts.llm
    loaded = time.perf_counter()
    if prefix:
        states = parts.cached(key, networks, lambda: _keys_and_values(parts, prefix, features))
        cache[:] = [KVCache.holding(k, v) for k, v in zip(states[::2], states[1::2], strict=True)]
        features = []
    embeds = embed_prompts(llm.embed_tokens, [ids], features).inputs_embeds
    end = parts.tokenizer.token_id(IM_END)
    text, shown, first = parts.tokenizer.stream(), StopTexts(settings.stop or ()), 0.0
    cached = length - computed
    tokens = decode(
        llm,
        lm_head,
        embeds,
        cache,
        max_tokens=min(settings.max_tokens, free),
        eos_token_ids=(*parts.config.eos_token_ids, *([] if end is None else [end])),
        settings=settings,
    )
    for decoded in explained(parts, tokens):
        first = first or time.perf_counter()
        segment, finish_reason = text.add(decoded.token), decoded.finish_reason
        if finish_reason is not None:
            segment += text.flush()
        segment = shown.add(segment)
        if shown.found:
            finish_reason = "stop"
        if finish_reason is None:
            yield AnswerToken(segment, decoded.token, None, computed, cached_tokens=cached)
            continue
        segment += shown.flush()
        timings = {"vision": seen - begun, "prefill": first - loaded, "decode": time.perf_counter() - first}
        held = mx.get_peak_memory(), mx.get_cache_memory()
        yield AnswerToken(segment, decoded.token, finish_reason, computed, timings, *held, cached)
        return


def _keys_and_values(parts: Parts, ids: list[int], features: list[mx.array]) -> list[mx.array]:
    """The keys and values of a conversation's beginning, (1, kv_heads, T, head_dim), in turn for each layer."""
    cache = parts.llm.make_cache()
    for layer in cache:
        layer.step = 1  # no space for more positions: it is to be kept
    prefill(parts.llm, embed_prompts(parts.llm.embed_tokens, [ids], features).inputs_embeds, cache)
    return [array for layer in cache for array in layer.state]
