"""The largest published size with random weights: minutes and ten gigabytes, so only when asked for (`-m slow`)."""

import gc

import mlx.core as mx
import pytest
from mobileo_weights import manifest, upstream_config

from mobileo_mlx.models.mobileo import MobileOConfig, build


@pytest.fixture(scope="module")
def config() -> MobileOConfig:
    return MobileOConfig.from_upstream(upstream_config("1.5B"), manifest("1.5B"))


@pytest.fixture(autouse=True)
def _free():
    yield
    gc.collect()
    mx.clear_cache()


@pytest.mark.slow
def test_one_dit_step_of_the_1_5b(config):
    dit = build("dit", config)
    text = mx.random.normal((2, 48, config.dit.caption_channels))
    latents = mx.random.normal((2, 16, 16, config.dit.in_channels))
    velocity = dit(latents, mx.full((2,), 999.0), dit.encode_text(text))
    assert velocity.shape == latents.shape
    assert mx.isfinite(velocity).all()


@pytest.mark.slow
def test_one_token_of_the_1_5b(config):
    llm, lm_head = build("llm", config), build("lm_head", config)
    cache = llm.make_cache()
    llm(llm.embed_tokens(mx.arange(16)[None]), cache=cache)
    logits = lm_head(llm(llm.embed_tokens(mx.array([[16]])), cache=cache))
    assert logits.shape == (1, 1, config.llm.vocab_size)
    assert mx.isfinite(logits).all()
