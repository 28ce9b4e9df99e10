"""The token loop with a key-value cache: a generator that yields each token. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from .errors import NotFiniteError
from .generation_options import AnswerSettings
from .models.qwen2 import Cache, Qwen2Model
from .ops.finite import all_finite

PREFILL_STEP = 2048  # positions, as in mlx-lm
_GREEDY = AnswerSettings()

# Logits (vocab_size,) to a token, the logits after the penalty, and whether all that it is chosen from is finite.
_Choose = Callable[[mx.array], tuple[mx.array, mx.array, mx.array]]


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

    The graph of each token is built and queued before the one before it is waited for, up to `max_tokens`: at an end
    token one step more has been computed than was needed.

    Args:
        model: the language model.
        lm_head: hidden states (B, 1, hidden_size) to logits.
        inputs_embeds: the prompt, (1, T, hidden_size), after what the cache holds.
        cache: extended in place. `offset` says whether the token that was yielded last is already in it: all are but
            the last of `max_tokens`.
        max_tokens: 1 or more, where the settings' own number does not hold.
        settings: how a token is chosen from its logits; by default it is the likeliest.

    Raises:
        NotFiniteError: the logits of a token are not finite, because of `llm`, `lm_head` or the settings. What the
            cache holds of it may not be, either.
    """
    max_tokens = settings.max_tokens if max_tokens is None else max_tokens
    choose = _sampler(settings, max_tokens)
    current = _queued(model, lm_head, inputs_embeds, cache, choose)
    for count in range(1, max_tokens + 1):
        following = None
        if count < max_tokens:
            # Before this token is waited for, so that a GPU has work while Python builds the next graph.
            embeds = model.embed_tokens(current.token[None, None])
            following = _queued(model, lm_head, embeds, cache, choose)
        token, finite = current.wait()
        if not finite:
            raise _not_finite(current, settings)
        finish_reason: Literal["stop", "length"] | None = None
        if token in eos_token_ids:
            finish_reason = "stop"
        elif following is None:
            finish_reason = "length"
        yield DecodedToken(token, current.logits, finish_reason)
        if finish_reason is not None or following is None:
            return
        current = following


@dataclass(frozen=True)
class _Queued:
    """A token that is being computed; all arrays are lazy until `fetched` is read.

    Attributes:
        token: the id, a scalar.
        logits: that it was chosen from, (vocab_size,) float32.
        fetched: (2,), the id, and 1 where all logits are finite.
        hidden, raw: the hidden state and the logits as the head gave them, to look closer at a failure.
    """

    token: mx.array
    logits: mx.array
    fetched: mx.array
    hidden: mx.array
    raw: mx.array

    def wait(self) -> tuple[int, int]:
        """`fetched`, once it is computed."""
        fetched: Any = self.fetched.tolist()
        return fetched[0], fetched[1]


def _queued(
    model: Qwen2Model,
    lm_head: Callable[[mx.array], mx.array],
    embeds: mx.array,
    cache: Sequence[Cache],
    choose: _Choose,
) -> _Queued:
    """Queues the token that follows `embeds`, which follow what the cache holds."""
    hidden = prefill(model, embeds, cache)
    raw = lm_head(hidden)[0, 0].astype(mx.float32)
    token, logits, finite = choose(raw)
    fetched = mx.stack([token, finite.astype(token.dtype)])
    mx.async_eval(fetched, logits)
    return _Queued(token, logits, fetched, hidden, raw)


def _not_finite(failed: _Queued, settings: AnswerSettings) -> NotFiniteError:
    """The error for a token whose logits are not finite, and the first component in which that shows."""
    if not all_finite(failed.hidden).item():
        return NotFiniteError("llm")
    if not all_finite(failed.raw).item():
        return NotFiniteError("lm_head")
    names = [f"temperature {settings.temperature:g}"] if settings.temperature else []
    names += [f"repetition penalty {settings.repetition_penalty:g}"] if _penalises(settings) else []
    return NotFiniteError(
        "lm_head", f"its logits leave float32's range by {' and '.join(names)}; choose it closer to 1"
    )


def import_sampling(settings: AnswerSettings) -> None:
    """Imports what this needs of mlx-lm, which takes more than a second; `decode` would do it on the way."""
    if _penalises(settings) or _filters(settings):
        import mlx_lm.sample_utils  # noqa: F401


def _penalises(settings: AnswerSettings) -> bool:
    return settings.repetition_penalty not in (None, 1)


def _filters(settings: AnswerSettings) -> bool:
    return settings.temperature > 0 and settings.top_p < 1


def _sampler(settings: AnswerSettings, max_tokens: int) -> _Choose:
    """What chooses the tokens of one answer, one after the other; it remembers them where it has to."""
    penalise: Callable[[mx.array, mx.array], mx.array] | None = None
    top_p_filter: Callable[[mx.array, float], mx.array] | None = None
    # mlx-lm takes more than a second to import, and plain decoding has no need of it.
    if _penalises(settings):
        from mlx_lm.sample_utils import make_repetition_penalty

        penalise = make_repetition_penalty(settings.repetition_penalty, context_size=max_tokens)
    if _filters(settings):
        from mlx_lm.sample_utils import apply_top_p as top_p_filter

    key = mx.random.key(settings.seed)
    generated: mx.array | None = None  # the ids so far, (tokens,): lazy, as the last of them is still being computed

    def choose(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        nonlocal generated
        if generated is not None and penalise is not None:
            logits = penalise(generated, logits[None])[0]
        token, finite = drawn(logits)
        if penalise is not None:
            generated = token[None] if generated is None else mx.concatenate([generated, token[None]])
            mx.async_eval(generated)
        return token, logits, finite

    def drawn(logits: mx.array) -> tuple[mx.array, mx.array]:
        nonlocal key
        if settings.temperature == 0:
            return mx.argmax(logits), all_finite(logits)
        key, subkey = mx.random.split(key)
        mx.async_eval(key)  # for the thread that takes the next token, which may be another one
        scaled = logits / settings.temperature
        finite = all_finite(scaled)
        if top_p_filter is not None:
            scaled = top_p_filter((scaled - mx.logsumexp(scaled))[None], settings.top_p)[0]
        return mx.random.categorical(scaled, key=subkey), finite

    return choose
