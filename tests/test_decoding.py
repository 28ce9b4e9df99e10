"""The token loop with a model that is a table: no text, no weights."""

from __future__ import annotations

import gc
import inspect
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx import answering, decoding
from mobileo_mlx.chat import Chat
from mobileo_mlx.decoding import decode, prefill
from mobileo_mlx.errors import NotFiniteError, OptionError
from mobileo_mlx.generation_options import AnswerSettings
from mobileo_mlx.models.qwen2 import KVCache, Qwen2Model
from mobileo_mlx.pipeline import MobileO

VOCABULARY = 8


class Successor:
    """After token t comes t + 1: a model whose hidden state is the one-hot of the last token."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def embed_tokens(self, ids: mx.array) -> mx.array:
        return mx.eye(VOCABULARY)[ids]

    def __call__(self, inputs_embeds: mx.array, *, cache: list[KVCache], last_only: bool) -> mx.array:
        assert last_only, "only the last position is needed"
        self.lengths.append(inputs_embeds.shape[1])
        for layer in cache:
            layer.offset += inputs_embeds.shape[1]
        return inputs_embeds[:, -1:]


def successor(hidden: mx.array) -> mx.array:
    assert hidden.shape[1] == 1, "only the last position is needed"
    return 5 * mx.roll(hidden, 1, axis=-1)


def flat(hidden: mx.array) -> mx.array:
    return mx.zeros_like(hidden) + mx.arange(VOCABULARY) * 0.1


def run(head: object = successor, model: Successor | None = None, **options: object) -> list[tuple[int, str | None]]:
    model = model or Successor()
    prompt = model.embed_tokens(mx.array([[3, 1, 2]]))
    options = {"max_tokens": 6, **options}
    return [(step.token, step.finish_reason) for step in decode(model, head, prompt, [KVCache()], **options)]


@pytest.mark.parametrize(("length", "lengths"), [(8, [8]), (9, [8, 1]), (16, [8, 8]), (21, [8, 8, 5])])
def test_long_prompts_are_read_in_chunks(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, length: int, lengths: list[int]
) -> None:
    llm = MobileO.load(tiny_model).parts.llm
    embeds = llm.embed_tokens(mx.arange(length)[None])
    whole, chunked = llm.make_cache(), llm.make_cache()
    expected = prefill(llm, embeds, whole)
    seen: list[int] = []
    call = Qwen2Model.__call__

    def watched(self: Qwen2Model, inputs_embeds: mx.array, **options: Any) -> mx.array:
        seen.append(inputs_embeds.shape[1])
        return call(self, inputs_embeds, **options)

    monkeypatch.setattr(decoding, "PREFILL_STEP", 8)
    monkeypatch.setattr(Qwen2Model, "__call__", watched)
    assert mx.allclose(prefill(llm, embeds, chunked), expected, atol=1e-5)
    assert seen == lengths
    for ours, theirs in zip(chunked, whole, strict=True):
        assert all(mx.allclose(a, b, atol=1e-5) for a, b in zip(ours.state, theirs.state, strict=True))


def test_the_limit_ends_it() -> None:
    assert run() == [(3, None), (4, None), (5, None), (6, None), (7, None), (0, "length")]
    assert run(max_tokens=1) == [(3, "length")]


def test_an_end_token_ends_it_and_is_the_last() -> None:
    assert run(eos_token_ids=(5, 7)) == [(3, None), (4, None), (5, "stop")]
    assert run(eos_token_ids=(3,), max_tokens=1) == [(3, "stop")]


def test_the_prompt_is_read_once() -> None:
    model = Successor()
    run(model=model)
    assert model.lengths == [3, 1, 1, 1, 1, 1]


def test_one_step_is_computed_after_an_end_token() -> None:
    model = Successor()
    run(model=model, eos_token_ids=(4,))
    assert model.lengths == [3, 1, 1]


def test_a_token_is_queued_before_the_one_before_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    queued, waited = decoding._queued, decoding._Queued.wait

    def queue(*arguments: Any) -> Any:
        order.append("queue")
        return queued(*arguments)

    def wait(self: Any) -> Any:
        order.append("wait")
        return waited(self)

    monkeypatch.setattr(decoding, "_queued", queue)
    monkeypatch.setattr(decoding._Queued, "wait", wait)
    assert len(run(max_tokens=4)) == 4
    assert order == ["queue", "queue", "wait", "queue", "wait", "queue", "wait", "wait"]
    order.clear()
    assert run(max_tokens=9, eos_token_ids=(4,)) == [(3, None), (4, "stop")]
    assert order == ["queue", "queue", "wait", "queue", "wait"]


def one_by_one(settings: AnswerSettings, max_tokens: int, eos_token_ids: tuple[int, ...], head: Any) -> list[int]:
    """The same tokens in the plain way: each is known before the next one is computed."""
    from mlx_lm.sample_utils import apply_top_p, make_repetition_penalty

    model, cache, key = Successor(), [KVCache()], mx.random.key(settings.seed)
    embeds, tokens = model.embed_tokens(mx.array([[3, 1, 2]])), []
    while len(tokens) < max_tokens and not (tokens and tokens[-1] in eos_token_ids):
        logits = head(model(embeds, cache=cache, last_only=True))[0, 0]
        if settings.repetition_penalty is not None and tokens:
            logits = make_repetition_penalty(settings.repetition_penalty, 100)(mx.array(tokens), logits[None])[0]
        if settings.temperature == 0:
            token = mx.argmax(logits)
        else:
            key, subkey = mx.random.split(key)
            scaled = logits / settings.temperature
            if settings.top_p < 1:
                scaled = apply_top_p((scaled - mx.logsumexp(scaled))[None], settings.top_p)[0]
            token = mx.random.categorical(scaled, key=subkey)
        tokens.append(int(token))
        embeds = model.embed_tokens(token[None, None])
    return tokens


@pytest.mark.parametrize("eos_token_ids", [(), (2, 6)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 2.0, "seed": 6, "top_p": 0.8},
        {"temperature": 1.5, "seed": 7, "repetition_penalty": 3.0},
    ],
)
@pytest.mark.parametrize("max_tokens", [1, 2, 24])
def test_tokens_are_those_of_the_plain_way(
    options: dict[str, Any], eos_token_ids: tuple[int, ...], max_tokens: int
) -> None:
    def leaning(hidden: mx.array) -> mx.array:
        return hidden @ mx.cos(mx.arange(VOCABULARY * VOCABULARY, dtype=mx.float32)).reshape(VOCABULARY, VOCABULARY)

    settings, model = AnswerSettings(**options), Successor()
    found = run(leaning, model, settings=settings, max_tokens=max_tokens, eos_token_ids=eos_token_ids)
    assert [token for token, _ in found] == one_by_one(settings, max_tokens, eos_token_ids, leaning)
    # One step beyond an end token, none beyond the last of `max_tokens`.
    assert len(model.lengths) == min(len(found) + (found[-1][1] == "stop"), max_tokens)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 2])
def test_logits_that_are_not_finite_are_an_error(value: float, position: int) -> None:
    calls: list[int] = []

    def failing(hidden: mx.array) -> mx.array:
        calls.append(len(calls))
        return successor(hidden) + mx.where(mx.arange(VOCABULARY) == 1, value if len(calls) > position else 0.0, 0.0)

    model = Successor()
    steps = decode(model, failing, model.embed_tokens(mx.array([[3, 1, 2]])), [KVCache()], max_tokens=6)
    tokens = [next(steps).token for _ in range(position)]
    with pytest.raises(NotFiniteError) as failed:
        next(steps)
    assert failed.value.component == "lm_head"
    assert tokens == [3, 4][:position]
    assert len(calls) == position + 2  # the next one was queued already


def test_hidden_states_that_are_not_finite_are_the_language_models() -> None:
    with pytest.raises(NotFiniteError) as failed:
        run(successor, Broken())
    assert failed.value.component == "llm"


class Broken(Successor):
    def __call__(self, inputs_embeds: mx.array, **options: Any) -> mx.array:
        return super().__call__(inputs_embeds, **options) * float("nan")


def test_closing_early_stops_the_model() -> None:
    model, cache = Successor(), [KVCache()]
    steps = decode(model, successor, model.embed_tokens(mx.array([[3, 1, 2]])), cache, max_tokens=1000)
    tokens = [next(steps).token for _ in range(3)]
    steps.close()
    gc.collect()
    assert tokens == [3, 4, 5]
    # The fed tokens are the prompt, those that were yielded, and perhaps the next one.
    assert cache[0].offset - 3 in (2, 3)
    assert len(model.lengths) <= 4
    with pytest.raises(StopIteration):
        next(steps)


def test_logits_are_those_that_the_token_was_chosen_from() -> None:
    model = Successor()
    prompt = model.embed_tokens(mx.array([[3, 1, 2]]))
    for step in decode(model, successor, prompt, [KVCache()], max_tokens=4):
        assert step.logits.shape == (VOCABULARY,)
        assert step.logits.dtype == mx.float32
        assert mx.argmax(step.logits).item() == step.token
        assert step.logits[step.token].item() == 5


def test_a_repetition_penalty_sees_generated_tokens_alone() -> None:
    # Token 7 has the highest logit, then 6, ...: each is chosen once, and the prompt's own tokens too.
    penalised = run(flat, settings=AnswerSettings(repetition_penalty=100.0), max_tokens=7)
    assert [token for token, _ in penalised] == [7, 6, 5, 4, 3, 2, 1]
    assert [token for token, _ in run(flat, max_tokens=3)] == [7, 7, 7]


def test_a_penalty_of_one_is_none() -> None:
    assert run(flat, settings=AnswerSettings(repetition_penalty=1.0)) == run(flat)


def test_the_same_seed_gives_the_same_tokens() -> None:
    answers = {seed: run(flat, settings=AnswerSettings(temperature=1.0, seed=seed), max_tokens=30) for seed in range(4)}
    assert answers[2] == run(flat, settings=AnswerSettings(temperature=1.0, seed=2), max_tokens=30)
    assert len({str(answer) for answer in answers.values()}) == 4


def test_sampling_leaves_the_global_seed_alone() -> None:
    mx.random.seed(1)
    expected = mx.random.normal((3,))
    mx.random.seed(1)
    run(flat, settings=AnswerSettings(temperature=1.0))
    assert mx.array_equal(mx.random.normal((3,)), expected)


def test_a_low_temperature_is_greedy_and_a_high_one_is_not() -> None:
    cold = run(flat, settings=AnswerSettings(temperature=0.001), max_tokens=20)
    assert {token for token, _ in cold} == {7}
    hot = run(flat, settings=AnswerSettings(temperature=50.0), max_tokens=60)
    assert len({token for token, _ in hot}) == VOCABULARY


def test_top_p_keeps_the_likely_tokens() -> None:
    def two_of_eight(hidden: mx.array) -> mx.array:
        return mx.zeros_like(hidden) + mx.array([0.0, 0, 6, 0, 0, 6, 0, 0])

    options = {"max_tokens": 60}
    sampled = run(two_of_eight, settings=AnswerSettings(temperature=1.0, top_p=0.9), **options)
    assert {token for token, _ in sampled} == {2, 5}
    everything = run(two_of_eight, settings=AnswerSettings(temperature=8.0), **options)
    assert len({token for token, _ in everything}) > 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.5}, "top-p 1.5"),
        ({"top_p": float("nan")}, "top-p nan"),
        ({"repetition_penalty": 0.0}, "repetition penalty 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition penalty inf"),
    ],
)
def test_impossible_options_are_named(options: dict[str, float], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        AnswerSettings(**options)


def test_seeds_of_numpy() -> None:
    def sampled(seed: object) -> list[tuple[int, str | None]]:
        return run(flat, settings=AnswerSettings(temperature=1, seed=seed))

    assert sampled(np.int64(5)) == sampled(5) != sampled(6)


@pytest.mark.parametrize("seed", [True, np.bool_(True), 1.0, "1", -1, 2**64])
def test_what_is_no_seed(seed: object) -> None:
    with pytest.raises(OptionError, match="whole number from 0 to"):
        AnswerSettings(seed=seed)


def test_the_options_of_all_ways_to_ask_are_the_same() -> None:
    for way in (Chat.stream, Chat.send, MobileO.ask, MobileO.stream_ask):
        # What a type checker needs to find a misspelt option.
        assert inspect.signature(way).parameters["options"].annotation == "Unpack[AnswerOptions]"


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.1}, {"temperature": 1.0, "top_p": 0.9}])
def test_importing_mlx_lm_is_no_part_of_the_prefill(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    imported = []

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            imported.append("mlx_lm.sample_utils" in sys.modules)
            return time.perf_counter()

    chat = MobileO.load(tiny_model).chat()
    monkeypatch.delitem(sys.modules, "mlx_lm.sample_utils", raising=False)
    monkeypatch.setattr(answering, "time", Clock)
    chat.send("hello", max_tokens=2, **options)
    assert imported
    assert all(imported)
