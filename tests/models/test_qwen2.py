from __future__ import annotations

import itertools

import mlx.core as mx
import pytest

from mobileo_mlx.errors import ConfigError
from mobileo_mlx.models.qwen2 import KVCache, Qwen2Config, Qwen2Model, config_from_upstream, sanitize

CONFIG = Qwen2Config(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=50,
)


@pytest.fixture(scope="module")
def model() -> Qwen2Model:
    mx.random.seed(0)
    return Qwen2Model(CONFIG).eval()


@pytest.fixture
def embeds(model: Qwen2Model) -> mx.array:
    return model.embed_tokens(mx.random.randint(0, 50, (2, 11), key=mx.random.key(0)))


def test_shapes(model: Qwen2Model, embeds: mx.array) -> None:
    assert model(embeds).shape == (2, 11, 32)
    states = model.hidden_states(embeds, 4)
    assert [state.shape for state in states] == [(2, 11, 32)] * 4
    assert mx.array_equal(states[0], embeds)
    assert mx.array_equal(states[-1], model(embeds))


def test_fewer_states_are_the_last_ones(model: Qwen2Model, embeds: mx.array) -> None:
    states = model.hidden_states(embeds, 4)
    for last in (1, 2, 3):
        for some, of_all in zip(model.hidden_states(embeds, last), states[-last:], strict=True):
            assert mx.array_equal(some, of_all)


@pytest.mark.parametrize("pieces", [(11,), (5, 6), (4, 1, 6), (10, 1)])
def test_the_last_position_alone(model: Qwen2Model, embeds: mx.array, pieces: tuple[int, ...]) -> None:
    """The last layer computes one row; its keys and values are those of all."""
    some, whole = model.make_cache(), model.make_cache()
    ends = itertools.accumulate(pieces, initial=0)
    for start, end in itertools.pairwise(ends):
        last = model(embeds[:, start:end], cache=some, last_only=True)
        expected = model(embeds[:, start:end], cache=whole)[:, -1:]
        assert last.shape == (2, 1, 32)
        assert mx.allclose(last, expected, rtol=0, atol=1e-6)
    for ours, theirs in zip(some, whole, strict=True):
        assert all(mx.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours.state, theirs.state, strict=True))
    assert mx.allclose(model(embeds, last_only=True), model(embeds)[:, -1:], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="padded"):
        model(embeds, attention_mask=mx.ones((2, 11), mx.bool_), last_only=True)


def test_a_cache_that_holds_something_leaves_it_as_it_is(model: Qwen2Model, embeds: mx.array) -> None:
    cache = model.make_cache()
    model(embeds[:, :6], cache=cache)
    kept = [tuple(mx.contiguous(x) for x in layer.state) for layer in cache]
    before = [mx.array(keys) for keys, _ in kept]
    expected = model(embeds[:, 6:], cache=cache)
    for _ in range(2):
        again = [KVCache.holding(keys, values) for keys, values in kept]
        assert mx.allclose(model(embeds[:, 6:], cache=again), expected, rtol=0, atol=1e-6)
    assert all(mx.array_equal(keys, old) for (keys, _), old in zip(kept, before, strict=True))
    with pytest.raises(ValueError, match="nothing"):
        _ = KVCache().state


@pytest.mark.parametrize("pieces", [(11,), (6, 1, 1, 1, 1, 1), (1,) * 11, (4, 3, 4)])
def test_cache_equals_the_full_pass(model: Qwen2Model, embeds: mx.array, pieces: tuple[int, ...]) -> None:
    cache = model.make_cache()
    ends = itertools.accumulate(pieces, initial=0)
    parts = [model(embeds[:, start:end], cache=cache) for start, end in itertools.pairwise(ends)]
    assert mx.allclose(mx.concatenate(parts, axis=1), model(embeds), atol=1e-5)
    assert [layer.offset for layer in cache] == [11] * 3


def test_mlx_lms_cache_serves_as_well(model: Qwen2Model, embeds: mx.array) -> None:
    foreign = pytest.importorskip("mlx_lm.models.cache")
    ours, theirs = model.make_cache(), [foreign.KVCache() for _ in model.layers]
    for start, end in ((0, 5), (5, 6), (6, 11)):
        part = embeds[:, start:end]
        assert mx.array_equal(model(part, cache=ours), model(part, cache=theirs))


def test_a_cache_outgrows_its_buffer(model: Qwen2Model, embeds: mx.array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "step", 4)
    cache = model.make_cache()
    parts = [model(embeds[:, i : i + 1], cache=cache) for i in range(11)]
    assert mx.allclose(mx.concatenate(parts, axis=1), model(embeds), atol=1e-5)
    assert cache[0].keys is not None
    assert cache[0].keys.shape == (2, 2, 12, 8)


def test_a_cache_that_is_wound_back_forgets(model: Qwen2Model, embeds: mx.array) -> None:
    cache = model.make_cache()
    model(embeds, cache=cache)
    for layer in cache:
        layer.offset = 4
    again = model(embeds[:, 4:7], cache=cache)
    assert mx.allclose(again, model(embeds[:, :7])[:, 4:], atol=1e-5)


def test_padding_on_the_right_changes_nothing_before_it(model: Qwen2Model, embeds: mx.array) -> None:
    mask = mx.arange(11)[None] < mx.array([[11], [6]])
    padded = model(embeds, attention_mask=mask)
    assert mx.allclose(padded[1:, :6], model(embeds[1:, :6]), atol=1e-5)
    assert mx.allclose(padded[:1], model(embeds[:1]), atol=1e-5)


def test_old_rotary_tables_are_dropped() -> None:
    weights = {"layers.0.self_attn.rotary_emb.inv_freq": mx.ones(4), "norm.weight": mx.ones(32)}
    assert list(sanitize(weights)) == ["norm.weight"]


def test_configuration_of_upstream() -> None:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 44,
        "rope_parameters": {"rope_theta": 5000.0},
        "unknown": 1,
    }
    config = config_from_upstream(values, 50, "config.json")
    assert config.vocab_size == 50  # the tensor's rows, not what the file says
    assert config.rope_theta == 5000.0
    del values["hidden_size"], values["num_attention_heads"]
    with pytest.raises(ConfigError, match=r"config\.json lacks 'hidden_size', 'num_attention_heads'"):
        config_from_upstream(values, 50, "config.json")
