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
Makers = dict[str, Callable[[], mx.array]]


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


def run(component: str, network: nn.Module, config: MobileOConfig, given: Arrays, *, production: bool) -> Makers:
    """What makes arrays, by the name of what they are.

    Args:
        network: the component's.
        given: `first_inputs` and what the components before in `ORDER` have made, in the network's dtype.
        production: whether networks are called as the pipeline calls them, or in their plain form. The names are the
            same, and so are shapes.
    """
    return _RUNS[component](network, config, given, production)


def _vision_tower(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    return {"image_tokens": lambda: (network.encode if production else network)(given["pixel_values"])}


def _mm_projector(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    return {"image_features": lambda: network(given["image_tokens"])}


def _llm(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    """An image and a request, and then a few tokens one by one."""
    count = config.diffusion_connector.num_layers

    def prompt() -> mx.array:
        return mx.concatenate([given["image_features"], network.embed_tokens(given["ids"])], axis=1)

    def all_at_once() -> mx.array:
        return mx.concatenate([prompt(), network.embed_tokens(given["new_ids"])], axis=1)

    def one_by_one() -> mx.array:
        cache, new = empty_cache(config.llm.num_hidden_layers), network.embed_tokens(given["new_ids"])
        states = [prefill(network, prompt(), cache)]
        states += [prefill(network, new[:, i : i + 1], cache) for i in range(_NEW_TOKENS)]
        return mx.concatenate(states, axis=1)

    return {
        "hidden_states": lambda: mx.stack(network.hidden_states(prompt(), count)),
        "last_states": one_by_one if production else lambda: network(all_at_once())[:, -_NEW_TOKENS - 1 :],
    }


def _lm_head(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    return {"logits": lambda: network(given["last_states"])}


def _diffusion_connector(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    states, drawing = list(given["hidden_states"]), given["ids"].shape[1]
    return {
        "unconditional": lambda: network([mx.zeros_like(state[:, :drawing]) for state in states]),
        "conditioning": lambda: network([state[:, -drawing:] for state in states]),
        "conditioning_of_edit": lambda: network(states),
    }


def _dit(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    """A step without guidance that reads the text of an edit, and one with guidance that reads a short one."""
    short, long, zeros = given["conditioning"], given["conditioning_of_edit"], given["unconditional"]
    latents = noised(given["latents"] * config.vae.scaling_factor, given["noise"], _SIGMA)
    connector = config.diffusion_connector
    halo = connector.num_refinement_blocks * (connector.kernel_size // 2)

    def plain(latents: mx.array, texts: mx.array) -> mx.array:
        rows = len(texts)
        return network(mx.repeat(latents, rows, axis=0), mx.full((rows,), _TIMESTEP), network.encode_text(texts))

    def prepared(text: TextInput, unconditional: TextInput | None = None) -> mx.array:
        steps = mx.array([999.0, _TIMESTEP])
        return PreparedSana(network, steps, text, unconditional)(1, latents, guided=unconditional is not None)

    both = mx.concatenate([zeros, short])
    if not production:
        # Blocks are compared in the last of these calls.
        return {
            "velocity_of_edit": lambda: plain(latents, long),
            "guided_velocity": lambda: plain(latents, both),
        }
    return {
        "velocity_of_edit": lambda: prepared(TextInput(long)),
        "guided_velocity": lambda: prepared(TextInput(short), TextInput(zeros, halo=halo)),
    }


def _vae_encoder(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    return {"latents": lambda: (network.encode if production else network)(given["image"])}


def _vae_decoder(network: Any, config: MobileOConfig, given: Arrays, production: bool) -> Makers:
    return {"decoded": lambda: (network.decode if production else network)(given["latents"])}


_RUNS: dict[str, Callable[[Any, MobileOConfig, Arrays, bool], Makers]] = {
    "vision_tower": _vision_tower,
    "mm_projector": _mm_projector,
    "llm": _llm,
    "lm_head": _lm_head,
    "diffusion_connector": _diffusion_connector,
    "vae_encoder": _vae_encoder,
    "dit": _dit,
    "vae_decoder": _vae_decoder,
}
