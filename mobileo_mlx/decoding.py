"""The token loop with a key-value cache: a generator that yields each token. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from .generation_options import AnswerSettings
from .models.qwen2 import Cache, Qwen2Model

PREFILL_STEP = 2048  # positions, as in mlx-lm
_GREEDY = AnswerSettings()


@dataclass(frozen=True)
class DecodedToken:
    """One token and the logits that it was chosen from, (vocab_size,) float32."""

    token: int
    logits: mx.array
    finish_reason: Literal["stop", "length"] | None


def prefill(model: Qwen2Model, inputs_embeds: mx.array, cache: Sequence[Cache]) -> mx.array:
    """Reads a prompt (1, T, hidden_size) into the cache and returns the hidden state of its last position.

    Long prompts are read `PREFILL_STEP` positions at a time, which bounds the memory of attention and MLP.

    Returns:
        (1, 1, hidden_size), not evaluated.
    """
    length, start = inputs_embeds.shape[1], 0
    while length - start > PREFILL_STEP:
        model(inputs_embeds[:, start : start + PREFILL_STEP], cache=cache, last_only=True)
        mx.eval([layer.state for layer in cache])
        start += PREFILL_STEP
    return model(inputs_embeds[:, start:], cache=cache, last_only=True)


def decode(
    model: Qwen2Model,
    lm_head: Callable[[mx.array], mx.array],
    inputs_embeds: mx.array,
    cache: Sequence[Cache],
    *,
    max_tokens: int | None = None,
    eos_token_ids: Sequence[int] = (),
    settings: AnswerSettings = _GREEDY,
) -> Iterator[DecodedToken]:
    """Yields tokens until one of `eos_token_ids`, which is the last of them, or until there are `max_tokens`.

    Args:
        model: the language model.
        lm_head: hidden states (B, 1, hidden_size) to logits.
        inputs_embeds: the prompt, (1, T, hidden_size), after what the cache holds.
        cache: extended in place. `offset` says whether the token that was yielded last is already in it.
        max_tokens: 1 or more, where the settings' own number does not hold.
        settings: how a token is chosen from its logits; by default it is the likeliest.
    """
    max_tokens = settings.max_tokens if max_tokens is None else max_tokens
    choose = _sampler(settings, max_tokens)
    generated: list[int] = []

    def next_token(embeds: mx.array) -> tuple[mx.array, mx.array]:
        hidden = prefill(model, embeds, cache)
        return choose(lm_head(hidden)[0, 0].astype(mx.float32), generated)

    token, logits = next_token(inputs_embeds)
    while True:
        generated.append(int(token))
        finish_reason: Literal["stop", "length"] | None = None
        if generated[-1] in eos_token_ids:
            finish_reason = "stop"
        elif len(generated) >= max_tokens:
            finish_reason = "length"
        current = logits
        if finish_reason is None:
            # The next token is computed while the caller prints this one.
            token, logits = next_token(model.embed_tokens(token[None, None]))
            mx.async_eval(token, logits)
        yield DecodedToken(generated[-1], current, finish_reason)
        if finish_reason is not None:
            return


def import_sampling(settings: AnswerSettings) -> None:
    """Imports what this needs of mlx-lm, which takes more than a second; `decode` would do it on the way."""
    if _penalises(settings) or _filters(settings):
        import mlx_lm.sample_utils  # noqa: F401


def _penalises(settings: AnswerSettings) -> bool:
    return settings.repetition_penalty not in (None, 1)


def _filters(settings: AnswerSettings) -> bool:
    return settings.temperature > 0 and settings.top_p < 1


def _sampler(settings: AnswerSettings, max_tokens: int) -> Callable[[mx.array, list[int]], tuple[mx.array, mx.array]]:
    """A function from logits (vocab_size,) and the tokens so far to a token and the logits after the penalty."""
    penalise: Callable[[mx.array, mx.array], mx.array] | None = None
    top_p_filter: Callable[[mx.array, float], mx.array] | None = None
    # mlx-lm takes more than a second to import, and plain decoding has no need of it.
    if _penalises(settings):
        from mlx_lm.sample_utils import make_repetition_penalty

        penalise = make_repetition_penalty(settings.repetition_penalty, context_size=max_tokens)
    if _filters(settings):
        from mlx_lm.sample_utils import apply_top_p as top_p_filter

    key = mx.random.key(settings.seed)

    def choose(logits: mx.array, generated: list[int]) -> tuple[mx.array, mx.array]:
        nonlocal key
        if penalise is not None and generated:
            logits = penalise(mx.array(generated), logits[None])[0]
        if settings.temperature == 0:
            return mx.argmax(logits), logits
        key, subkey = mx.random.split(key)
        mx.async_eval(key)  # for the thread that takes the next token, which may be another one
        scaled = logits / settings.temperature
        if top_p_filter is not None:
            scaled = top_p_filter((scaled - mx.logsumexp(scaled))[None], settings.top_p)[0]
        return mx.random.categorical(scaled, key=subkey), logits

    return choose
