"""The language model against transformers' Qwen2ForCausalLM, with the same random weights."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mobileo_mlx.decoding import decode  # noqa: E402
from mobileo_mlx.generation_options import AnswerSettings  # noqa: E402
from mobileo_mlx.models.mobileo import component_of  # noqa: E402
from mobileo_mlx.models.qwen2 import Qwen2Config, Qwen2Model, sanitize  # noqa: E402

from .common import assert_close, ported, randomised  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")

VOCABULARY, LAYERS = 96, 4


def pair(*, tied: bool = False, kv_heads: int = 2) -> tuple[Any, Qwen2Model, Any]:
    """Theirs, our model, and our map to logits."""
    theirs = randomised(
        transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                vocab_size=VOCABULARY,
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=kv_heads,
                max_position_embeddings=256,
                rope_theta=1_000_000.0,
                rms_norm_eps=1e-6,
                tie_word_embeddings=tied,
                attn_implementation="eager",
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
    )
    with torch.no_grad():
        theirs.model.embed_tokens.weight *= 48**0.5 / 2
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in theirs.state_dict().items():
        component, rest = component_of(name) or pytest.fail(f"{name} has no place")
        parts.setdefault(component, {})[rest] = tensor
    config = Qwen2Config.from_dict(theirs.config.to_dict() | {"rope_theta": 1_000_000.0})
    ours = ported(Qwen2Model(config), parts["llm"], sanitize)
    if tied:
        return theirs, ours, ours.embed_tokens.as_linear
    return theirs, ours, ported(nn.Linear(48, VOCABULARY, bias=False), parts["lm_head"], dict)


def ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_forward(tied: bool, kv_heads: int) -> None:
    theirs, ours, lm_head = pair(tied=tied, kv_heads=kv_heads)
    tokens = ids(2, 13)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), output_hidden_states=True)
    states = ours.hidden_states(ours.embed_tokens(mx.array(tokens)), LAYERS + 1)
    assert len(states) == len(expected.hidden_states)
    for state, reference in zip(states, expected.hidden_states, strict=True):
        assert_close(state, reference)
    assert_close(lm_head(states[-1]), expected.logits)


@pytest.mark.parametrize("last", range(1, LAYERS + 2))
def test_the_last_hidden_states_are_counted_as_theirs(last: int) -> None:
    theirs, ours, _ = pair()
    tokens = ids(1, 9)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), output_hidden_states=True).hidden_states[-last:]
    states = ours.hidden_states(ours.embed_tokens(mx.array(tokens)), last)
    assert len(states) == last
    for state, reference in zip(states, expected, strict=True):
        assert_close(state, reference)


def test_right_padded_batch() -> None:
    theirs, ours, lm_head = pair()
    tokens, lengths = ids(3, 11), [11, 6, 1]
    mask = np.arange(11) < np.array(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask).long()).logits
    logits = lm_head(ours(ours.embed_tokens(mx.array(tokens)), attention_mask=mx.array(mask)))
    for row, length in enumerate(lengths):  # what padding positions give has no meaning
        assert_close(logits[row, :length], expected[row, :length])


@pytest.mark.parametrize("pieces", [[12, 1, 1, 1, 1], [1] * 16, [5, 7, 4], [16]])
def test_cached_decoding_equals_the_full_pass(pieces: list[int]) -> None:
    theirs, ours, lm_head = pair()
    tokens = ids(1, 16)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits
    embeds, cache = ours.embed_tokens(mx.array(tokens)), ours.make_cache()
    starts = np.cumsum([0, *pieces])
    logits = [lm_head(ours(embeds[:, start:end], cache=cache)) for start, end in itertools.pairwise(starts)]
    assert_close(mx.concatenate(logits, axis=1), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("penalty", [None, 1.3, 0.8])
def test_greedy_generation(tied: bool, penalty: float | None) -> None:
    """Both get embeddings, as Mobile-O does, so that the penalty sees generated tokens alone."""
    theirs, ours, lm_head = pair(tied=tied)
    tokens = ids(1, 10, seed=3)
    embeds = theirs.model.embed_tokens(torch.from_numpy(tokens))
    options = {} if penalty is None else {"repetition_penalty": penalty}
    expected = theirs.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(1, 10), max_new_tokens=24, do_sample=False, **options
    )[0].tolist()
    steps = decode(
        ours,
        lm_head,
        ours.embed_tokens(mx.array(tokens)),
        ours.make_cache(),
        max_tokens=24,
        settings=AnswerSettings(repetition_penalty=penalty),
    )
    assert [step.token for step in steps] == expected


def test_generation_stops_at_the_end_token() -> None:
    theirs, ours, lm_head = pair()
    tokens = ids(1, 10, seed=3)
    embeds = theirs.model.embed_tokens(torch.from_numpy(tokens))
    options = {"inputs_embeds": embeds, "attention_mask": torch.ones(1, 10), "max_new_tokens": 24, "do_sample": False}
    end = theirs.generate(**options)[0].tolist()[6]
    expected = theirs.generate(**options, eos_token_id=end, pad_token_id=end)[0].tolist()
    steps = list(
        decode(
            ours,
            lm_head,
            ours.embed_tokens(mx.array(tokens)),
            ours.make_cache(),
            max_tokens=24,
            eos_token_ids=(end,),
        )
    )
    assert [step.token for step in steps] == expected
    assert steps[-1].finish_reason == "stop"
