"""The cases of single networks: vision tower, language model, connector, DiT, autoencoder.

Each function runs a case from its inputs and returns what it can by the names of the index, in the reference's layout.
What it does not return counts as not exercised, so new kinds of cases and tensors show by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.conditioning import embed_prompts, encode_image
from mobileo_mlx.decoding import decode
from mobileo_mlx.generation_options import AnswerSettings
from mobileo_mlx.pipeline import MobileO

from .goldens import Case
from .hooks import taps

Outputs = dict[str, Any]  # mx.array or np.ndarray


def nhwc(x: np.ndarray) -> mx.array:
    return mx.array(x).transpose(0, 2, 3, 1)


def nchw(x: mx.array) -> mx.array:
    return x.transpose(0, 3, 1, 2)


def vision(case: Case, model: MobileO) -> Outputs:
    if "pixel_values" not in case.inputs:
        return {}
    pixels = nhwc(case.inputs["pixel_values"])
    tower = model.parts.vision_tower
    paths = {name: name for name in case.expected if re.fullmatch(r"network\.\d+", name)}
    paths |= {"stem": "patch_embed", "image_embeddings": "conv_exp"}
    with taps(tower, paths) as seen:
        tokens = tower(pixels)
    projected = encode_image(model.parts, pixels)
    return {**{name: nchw(x) for name, x in seen.items()}, "tokens": tokens, "projected": projected}


def mcp(case: Case, model: MobileO) -> Outputs:
    if "hidden_states" not in case.inputs or "temperature" not in case.params:
        return {}
    connector = model.parts.diffusion_connector
    stored = connector.temperature
    connector.temperature = mx.array(case.params["temperature"], mx.float32)
    paths = {"input_compress": "input_compress"}
    for name in case.expected:
        if (found := re.fullmatch(r"refiner(\d+)(\.conv|\.channel_attn)?", name)) is not None:
            paths[name] = f"sequence_refiners.{found[1]}{found[2] or ''}"
    states = [mx.array(state) for state in case.inputs["hidden_states"]]
    try:
        with taps(connector, paths) as seen:
            output = connector(states[-model.config.diffusion_connector.num_layers :])
        weights = connector.fusion_weights()
    finally:
        connector.temperature = stored
    for name, x in seen.items():
        if name.endswith(".conv"):
            seen[name] = x.swapaxes(1, 2)  # the reference has (B, C, N)
        elif name.endswith(".channel_attn"):
            seen[name] = x.swapaxes(1, 2)[..., None]
    return {**seen, "layer_weights_softmax": weights, "output": output}


def dit(case: Case, model: MobileO) -> Outputs:
    if not {"hidden_states", "encoder_hidden_states"} <= case.inputs.keys() or "timestep" not in case.params:
        return {}
    latents, text = nhwc(case.inputs["hidden_states"]), mx.array(case.inputs["encoder_hidden_states"])
    # Masked and unmasked cases share their inputs, and differ by name alone.
    mask = mx.array(case.inputs["encoder_attention_mask"]) if re.search(r"(^|_)mask$", case.name) else None
    if "row" in case.params:
        row = slice(case.params["row"], case.params["row"] + 1)
        latents, text, mask = latents[row], text[row], None if mask is None else mask[row]
    if "keep" in case.params:
        keep = slice(case.params["keep"])
        text, mask = text[:, keep], None if mask is None else mask[:, keep]
    network = model.parts.dit
    paths = {name: name for name in ("patch_embed", "time_embed", "caption_norm")} | {
        "block_last": "transformer_blocks"
    }
    for name in case.expected:
        if (found := re.fullmatch(r"block(\d+)(\.\w+)?", name)) is not None:
            paths[name] = f"transformer_blocks.{found[1]}{found[2] or ''}"
    with taps(network, paths) as seen:
        sample = network(latents, mx.array(case.params["timestep"]), network.encode_text(text, mask))
    if "time_embed" in seen:
        seen["time_embed"], seen["embedded_timestep"] = seen["time_embed"]
    for name, x in seen.items():
        if name.endswith(".ff"):
            seen[name] = nchw(x)
    return {**seen, "sample": nchw(sample)}


def vae(case: Case, model: MobileO) -> Outputs:
    if "image" in case.inputs:
        source, part, blocks = "image", "vae_encoder", {"down": "down_blocks"}
    elif "latent" in case.inputs:
        source, part, blocks = "latent", "vae_decoder", {"up": "up_blocks"}
    else:
        return {}
    network = model.parts[part]
    paths = {"conv_in": "conv_in"}
    for name in case.expected:
        if (found := re.fullmatch(r"(down|up)(\d+)", name)) is not None and found[1] in blocks:
            paths[name] = f"{blocks[found[1]]}.{found[2]}"
    with taps(network, paths) as seen:
        output = network(nhwc(case.inputs[source]))
    return {**{name: nchw(x) for name, x in seen.items()}, "latent" if source == "image" else "image": nchw(output)}


def llm(case: Case, model: MobileO) -> Outputs:
    if "input_ids" not in case.inputs:
        return {}
    features = (
        list(encode_image(model.parts, nhwc(case.inputs["pixel_values"]))) if "pixel_values" in case.inputs else []
    )
    if "max_new_tokens" in case.params:
        return _greedy(case, model, features)
    if "prompt" in case.params and "steps" in case.params:
        return _cached(case, model)
    if any(name.startswith("out_") for name in case.expected):
        inputs = embed_prompts(
            model.parts.llm.embed_tokens,
            case.inputs["input_ids"],
            features,
            attention_mask=case.inputs.get("attention_mask"),
            labels=case.inputs.get("labels"),
        )
        outputs: Outputs = {"inputs_embeds": inputs.inputs_embeds, "out_attention_mask": inputs.attention_mask}
        return outputs if inputs.labels is None else {**outputs, "out_labels": inputs.labels}
    network = model.parts.llm
    embeds = embed_prompts(network.embed_tokens, case.inputs["input_ids"], features).inputs_embeds
    mask = mx.array(case.inputs["attention_mask"]) if "attention_mask" in case.inputs else None
    states = network.hidden_states(embeds, len(network.layers) + 1, attention_mask=mask)
    return {"inputs_embeds": embeds, "hidden_states": mx.stack(states), "logits": model.parts.lm_head(states[-1])}


def kept(case: Case, name: str) -> np.ndarray | None:
    """Where a tensor's values have a meaning: not in the padding of a batch. None means everywhere."""
    mask = case.inputs.get("attention_mask")
    if case.component != "llm" or mask is None or name not in ("hidden_states", "logits"):
        return None
    if name == "logits":
        return mask
    return np.broadcast_to(mask, (case.expected[name]["shape"][0], *mask.shape))


def _cached(case: Case, model: MobileO) -> Outputs:
    network, lm_head = model.parts.llm, model.parts.lm_head
    embeds = network.embed_tokens(mx.array(case.inputs["input_ids"]))
    cache, start = network.make_cache(), case.params["prompt"]
    parts = [embeds[:, :start], *(embeds[:, i : i + 1] for i in range(start, start + case.params["steps"]))]
    logits = [lm_head(network(part, cache=cache))[:, -1:] for part in parts]
    outputs: Outputs = {"cached_logits": mx.concatenate(logits, axis=1), "full_logits": lm_head(network(embeds))}
    for name in case.expected:
        if (found := re.fullmatch(r"layer(\d+)_(keys|values)", name)) is not None and int(found[1]) < len(cache):
            outputs[name] = cache[int(found[1])].state[("keys", "values").index(found[2])]
    return outputs


def _greedy(case: Case, model: MobileO, features: Sequence[mx.array]) -> Outputs:
    network, params = model.parts.llm, case.params
    end = params.get("eos_token_id")
    tokens = list(
        decode(
            network,
            model.parts.lm_head,
            embed_prompts(network.embed_tokens, case.inputs["input_ids"], features).inputs_embeds,
            network.make_cache(),
            max_tokens=params["max_new_tokens"],
            eos_token_ids=() if end is None else tuple(np.atleast_1d(end).tolist()),
            settings=AnswerSettings(repetition_penalty=params.get("repetition_penalty")),
        )
    )
    return {
        "tokens": np.array([[step.token for step in tokens]]),
        "step_logits": mx.stack([step.logits for step in tokens]),
    }


NETWORKS: Mapping[str, Any] = {"vision": vision, "llm": llm, "mcp": mcp, "dit": dit, "vae": vae}
