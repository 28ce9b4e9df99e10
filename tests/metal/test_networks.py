"""Every network as production runs it: on a GPU, in each precision, against float32 on the CPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mobileo_mlx.models.mobileo import MobileOConfig
from mobileo_mlx.models.sana_cross_attention import TextInput
from mobileo_mlx.models.sana_prepared import PreparedSana

from .devices import DTYPES, computed, config, largest_error, network, normal, on_cpu, rms_error

POSITIONS = 300
TIMESTEPS = (999.0, 640.0, 3.0)
# Largest error in float32, of an element relative to the largest value.
FLOAT32 = 1e-4
# In half precision: root mean square of the error relative to that of the values, in units of the rounding, eps / 2. A
# CPU in half precision, whose sums are no better than a GPU's, measured some two thirds of each (pytest -rP).
ROUNDINGS = {
    "vision_tower": 12.0,
    "mm_projector": 2.0,
    "llm": 6.0,
    "hidden_states": 5.0,
    "diffusion_connector": 4.0,
    "dit": 4.0,
    "prepared_dit": 5.0,
    "vae_encoder": 5.0,
    "vae_decoder": 7.0,
}

Run = Callable[[Any, MobileOConfig, mx.Dtype], object]


def tower(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    side = 8 * dims.vision_tower.patch_size
    return module.encode(mx.sigmoid(normal(1, side, side + dims.vision_tower.patch_size, 3)))


def projector(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    return module(normal(1, dims.image_tokens, dims.vision_tower.output_dim).astype(dtype))


def llm(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> list[mx.array]:
    """A question with an image, three tokens one by one, and a second question of 30."""
    x = normal(1, POSITIONS + 33, dims.llm.hidden_size).astype(dtype)
    cache = module.make_cache()
    ends = [0, *range(POSITIONS, POSITIONS + 4), POSITIONS + 33]
    return [module(x[:, start:end], cache=cache, last_only=True) for start, end in itertools.pairwise(ends)]


def hidden_states(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> list[mx.array]:
    """Of two prompts, the second of them padded; only what is no padding counts."""
    x = normal(2, 60, dims.llm.hidden_size).astype(dtype)
    lengths = mx.array([[60], [43]])
    states = module.hidden_states(x, 2, attention_mask=mx.arange(60)[None] < lengths)
    return [part for state in states for part in (state[0], state[1, :43])]


def connector(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    layers = range(dims.diffusion_connector.num_layers)
    return module([normal(1, 60, dims.llm.hidden_size, seed=seed).astype(dtype) for seed in layers])


def dit(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    """Two rows, each with a timestep and a text of its own, one of them padded."""
    text = normal(2, 60, dims.dit.caption_channels, seed=1).astype(dtype)
    texts = module.encode_text(text, mx.arange(60)[None] < mx.array([[60], [43]]))
    return module(latents(dims, 2).astype(dtype), mx.array(TIMESTEPS[:2]), texts)


def prepared_dit(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> list[mx.array]:
    """All steps of a drawing with guidance, of a short text, which is absorbed, and of an edit's long one."""
    results = []
    for length in (40, POSITIONS):
        text = TextInput(normal(1, length, dims.dit.caption_channels, seed=length).astype(dtype))
        drawing = PreparedSana(module, mx.array(TIMESTEPS), text, TextInput(text.states[:, :20] * 0.5))
        results += [drawing(step, latents(dims, 1), guided=True) for step in range(len(TIMESTEPS))]
    return results


def encoder(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    return module.encode(mx.tanh(normal(1, 8 * dims.vae.factor, 6 * dims.vae.factor, 3)))


def decoder(module: Any, dims: MobileOConfig, dtype: mx.Dtype) -> mx.array:
    return module.decode(normal(1, 8, 6, dims.vae.latent_channels))


def latents(dims: MobileOConfig, rows: int) -> mx.array:
    side = dims.dit.sample_size
    return normal(rows, side, side, dims.dit.in_channels, seed=2)


RUNS: dict[str, tuple[str, Run]] = {
    "vision_tower": ("vision_tower", tower),
    "mm_projector": ("mm_projector", projector),
    "llm": ("llm", llm),
    "hidden_states": ("llm", hidden_states),
    "diffusion_connector": ("diffusion_connector", connector),
    "dit": ("dit", dit),
    "prepared_dit": ("dit", prepared_dit),
    "vae_encoder": ("vae_encoder", encoder),
    "vae_decoder": ("vae_decoder", decoder),
}


@functools.cache
def dimensions() -> MobileOConfig:
    return config()


@functools.lru_cache(maxsize=1)
def expected(name: str) -> list[mx.array]:
    component, run = RUNS[name]
    module = network(component, dimensions())
    return on_cpu(lambda: run(module, dimensions(), mx.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_a_network_computes_what_the_cpu_does(name: str, dtype: str) -> None:
    component, run = RUNS[name]
    reference = expected(name)
    module = network(component, dimensions(), DTYPES[dtype])
    results = computed(lambda: run(module, dimensions(), DTYPES[dtype]))
    measure, limit, unit = largest_error, FLOAT32, 1.0
    if dtype != "float32":
        measure, limit, unit = rms_error, ROUNDINGS[name], mx.finfo(DTYPES[dtype]).eps / 2
    errors = [measure(y, x) / unit for y, x in zip(results, reference, strict=True)]
    print(f"\n{name} in {dtype}: {max(errors):.3g}, at most {limit:g}")
    assert {y.dtype for y in results} == {DTYPES[dtype]}
    assert max(errors) <= limit
