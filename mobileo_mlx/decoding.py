"""The token loop with a key-value cache: a generator that yields each token. It knows no text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import mlx.core as mx

from .errors import OptionError
from .models.qwen2 import Cache, Qwen2Model
from .seeds import checked_seed

if TYPE_CHECKING:
    from typing_extensions import Unpack

PREFILL_STEP = 2048  # positions, as in mlx-lm


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`."""

    temperature: float
    top_p: float
    repetition_penalty: float | None
    seed: int


class AnswerOptions(SamplingOptions, total=False):
    """The options of answering.

    Fields:
        max_tokens: at most (256); fewer where the context ends.
        temperature, top_p, repetition_penalty, seed: see `Sampling`.
    """

    max_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its logits.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: sampling is among the most likely tokens that together have this probability.
        repetition_penalty: above 1 tokens that were generated before become less likely (arXiv 1909.05858); the
            prompt does not count, as in the original.
        seed: of the random key; the same seed gives the same answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature {self.temperature} is not possible; choose 0 or more.")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top-p {self.top_p} is not possible; choose a number above 0 and up to 1.")
        penalty = self.repetition_penalty
        if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
            raise OptionError(f"repetition penalty {penalty} is not possible; choose a number above 0, such as 1.1.")
        checked_seed(self.seed)

    @property
    def _penalty(self) -> float | None:
        """None where there is none to apply."""
        return None if self.repetition_penalty == 1 else self.repetition_penalty

    @property
    def _uses_top_p(self) -> bool:
        return self.temperature > 0 and self.top_p < 1

    def prepare(self) -> None:
        """Imports what this needs of mlx-lm, which takes more than a second; `decode` would do it on the way."""
        if self._penalty is not None or self._uses_top_p:
            import mlx_lm.sample_utils  # noqa: F401


def resolve_answer_options(*, max_tokens: int = 256, **sampling: Unpack[SamplingOptions]) -> tuple[int, Sampling]:
    """`AnswerOptions` with defaults filled in, and checked.

    Raises:
        OptionError: an option is out of range.
    """
    if max_tokens < 1:
        raise OptionError(f"{max_tokens} tokens are not possible; choose 1 or more.")
    return max_tokens, Sampling(**sampling)


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
    max_tokens: int,
    eos_token_ids: Sequence[int] = (),
    sampling: Sampling = Sampling(),
) -> Iterator[DecodedToken]:
    """Yields tokens until one of `eos_token_ids`, which is the last of them, or until there are `max_tokens`.

    Args:
        model: the language model.
        lm_head: hidden states (B, 1, hidden_size) to logits.
        inputs_embeds: the prompt, (1, T, hidden_size), after what the cache holds.
        cache: extended in place. `offset` says whether the token that was yielded last is already in it.
        max_tokens: 1 or more.
    """
    choose = _sampler(sampling, max_tokens)
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


def _sampler(sampling: Sampling, max_tokens: int) -> Callable[[mx.array, list[int]], tuple[mx.array, mx.array]]:
    """A function from logits (vocab_size,) and the tokens so far to a token and the logits after the penalty."""
    penalise: Callable[[mx.array, mx.array], mx.array] | None = None
    top_p_filter: Callable[[mx.array, float], mx.array] | None = None
    # mlx-lm takes more than a second to import, and plain decoding has no need of it.
    if (penalty := sampling._penalty) is not None:
        from mlx_lm.sample_utils import make_repetition_penalty

        penalise = make_repetition_penalty(penalty, context_size=max_tokens)
    if sampling._uses_top_p:
        from mlx_lm.sample_utils import apply_top_p as top_p_filter

    key = mx.random.key(checked_seed(sampling.seed))

    def choose(logits: mx.array, generated: list[int]) -> tuple[mx.array, mx.array]:
        nonlocal key
        if penalise is not None and generated:
            logits = penalise(mx.array(generated), logits[None])[0]
        if sampling.temperature == 0:
            return mx.argmax(logits), logits
        key, subkey = mx.random.split(key)
        scaled = logits / sampling.temperature
        if top_p_filter is not None:
            scaled = top_p_filter((scaled - mx.logsumexp(scaled))[None], sampling.top_p)[0]
        return mx.random.categorical(scaled, key=subkey), logits

    return choose
