"""For each component what its plain network makes of inputs of the real size, and the same by way of production.

What one component makes is input of the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..decoding import prefill
from ..latents import noised
from ..models.mobileo import MobileOConfig
from ..models.qwen2 import empty_cache
from ..models.sana_cross_attention import TextInput
from ..models.sana_prepared import PreparedSana
from .sources import Source, picture

# Those first whose results are inputs of others.
ORDER = (
    "vision_tower",
    "mm_projector",
    "llm",
    "lm_head",
    "diffusion_connector",
    "vae_encoder",
    "dit",
    "vae_decoder",
)
_NEW_TOKENS = 8
_TIMESTEP, _SIGMA = 700.0, 0.7

_BLOCKS = {
    "vision_tower": r"patch_embed\.\d+|network\.\d+(\.\d+)?|conv_exp",
    "mm_projector": r"layers\.\d+",
    "llm": r"layers\.\d+|norm",
    "lm_head": "",
    "diffusion_connector": r"(input_compress|sequence_refiners|output_proj)\.\d+",
    "dit": r"patch_embed|time_embed\.(emb\.timestep_embedder|linear)|caption_projection|caption_norm"
    r"|transformer_blocks\.\d+|proj_out",
    "vae_encoder": r"conv_in|down_blocks\.\d+\.\d+|conv_out",
    "vae_decoder": r"conv_in|up_blocks\.\d+\.\d+|norm_out|conv_out",
}

Arrays = dict[str, mx.array]


def is_block(component: str, path: str) -> bool:
    """Whether the layer of a path is one of the blocks that a component is compared by."""
    return re.fullmatch(_BLOCKS[component], path) is not None


def first_inputs(source: Source) -> Arrays:
    """What is there before any component has run: pixels, tokens and noise."""
    config, ids = source.config, source.prompt()
    width, height = config.default_size
    size = (1, height // config.vae.factor, width // config.vae.factor, config.vae.latent_channels)
    return {
        "pixel_values": picture(config.image_size, config.image_size),
        "image": 2 * picture(width, height) - 1,
        "ids": mx.array(ids)[None],
        "new_ids": mx.array(ids[-_NEW_TOKENS:])[None],
        "noise": mx.random.normal(size, key=mx.random.key(1)),
        "other_noise": mx.random.normal(size, key=mx.random.key(2)),
    }


def run(component: str, network: nn.Module, config: MobileOConfig, given: Arrays, *, production: bool) -> Arrays:
    """Arrays by the name of what they are, not evaluated.

    Args:
        network: the component's.
        given: `first_inputs` and what this has returned for the components before in `ORDER`, in the network's dtype.
        production: whether networks are called as the pipeline calls them, or in their plain form. The names and
            shapes of what is returned are the same.
    """
    return _RUNS[component](network, config, given, production)


def _vision_tower(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    pixels = given["pixel_values"]
    return {"image_tokens": network.encode(pixels) if production else network(pixels)}


def _mm_projector(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    return {"image_features": network(given["image_tokens"])}


def _llm(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    """An image and a request, and then a few tokens one by one."""
    count = config.diffusion_connector.num_layers
    prompt = mx.concatenate([given["image_features"], network.embed_tokens(given["ids"])], axis=1)
    new = network.embed_tokens(given["new_ids"])
    if production:
        cache = empty_cache(config.llm.num_hidden_layers)
        first = prefill(network, prompt, cache)
        tokens = [prefill(network, new[:, i : i + 1], cache) for i in range(new.shape[1])]
        states = network.hidden_states(prompt, count)
        return {
            "hidden_states": mx.stack(states),
            "first_token": first,
            "next_tokens": mx.concatenate(tokens, axis=1),
        }
    length = prompt.shape[1]
    states = network.hidden_states(mx.concatenate([prompt, new], axis=1), count)
    last = states[-1]
    return {
        "hidden_states": mx.stack([state[:, :length] for state in states]),
        "first_token": last[:, length - 1 : length],
        "next_tokens": last[:, length:],
    }


def _lm_head(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    return {"logits": network(mx.concatenate([given["first_token"], given["next_tokens"]], axis=1))}


def _diffusion_connector(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    states, drawing = list(given["hidden_states"]), given["ids"].shape[1]
    return {
        "unconditional": network([mx.zeros_like(state[:, :drawing]) for state in states]),
        "conditioning": network([state[:, -drawing:] for state in states]),
        "conditioning_of_edit": network(states),
    }


def _dit(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    """A step with guidance that reads a short text, and one without guidance that reads one of an image."""
    short, long, zeros = given["conditioning"], given["conditioning_of_edit"], given["unconditional"]
    latents = noised(given["latents"] * config.vae.scaling_factor, given["noise"], _SIGMA)
    # Last the call whose blocks are compared one by one.
    edit = network(latents, mx.full((1,), _TIMESTEP), network.encode_text(long))
    rows, timesteps = mx.concatenate([latents, latents]), mx.full((2,), _TIMESTEP)
    plain = network(rows, timesteps, network.encode_text(mx.concatenate([zeros, short])))
    if not production:
        return {"velocity": plain, "guided_velocity": plain, "velocity_of_edit": edit}
    steps = mx.array([999.0, _TIMESTEP])
    connector = config.diffusion_connector
    unconditional = TextInput(zeros, halo=connector.num_refinement_blocks * (connector.kernel_size // 2))
    return {
        "velocity": plain,
        "guided_velocity": PreparedSana(network, steps, TextInput(short), unconditional)(1, latents, guided=True),
        "velocity_of_edit": PreparedSana(network, steps, TextInput(long))(1, latents, guided=False),
    }


def _vae_encoder(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    image = given["image"]
    return {"latents": network.encode(image) if production else network(image)}


def _vae_decoder(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Arrays:
    latents = given["latents"]
    return {"decoded": network.decode(latents) if production else network(latents)}


_RUNS: dict[str, Callable[[Any, MobileOConfig, Arrays, bool], Arrays]] = {
    "vision_tower": _vision_tower,
    "mm_projector": _mm_projector,
    "llm": _llm,
    "lm_head": _lm_head,
    "diffusion_connector": _diffusion_connector,
    "vae_encoder": _vae_encoder,
    "dit": _dit,
    "vae_decoder": _vae_decoder,
}
