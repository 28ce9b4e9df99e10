"""Single phases of the tasks, each alone in memory: what its weights take, and what it holds above them at most."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from mobileo_mlx.conditioning import embed_prompts, encode_image, hidden_states, text_input, unconditional_input
from mobileo_mlx.latents import decode_latents, noise
from mobileo_mlx.models.sana_cross_attention import TextInput

from .common import GB, POSITIONS, PROMPT_TOKENS, say

if TYPE_CHECKING:
    from mobileo_mlx import MobileO
    from mobileo_mlx.models.mcp import MobileConditioningProjector
    from mobileo_mlx.models.mobileo import MobileOConfig

GUIDANCE = 1.5

# In the order in which they run: the task, the phase, the components.
PHASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ask", "vision", ("vision_tower", "mm_projector")),
    ("ask", "prefill", ("llm", "lm_head")),
    ("ask", "decode", ("llm", "lm_head")),
    ("generate", "encode", ("llm", "diffusion_connector")),
    ("generate", "step", ("dit",)),
    ("generate", "decode", ("vae_decoder",)),
    ("edit", "vision", ("vision_tower", "mm_projector")),
    ("edit", "encode", ("llm", "diffusion_connector")),
    ("edit", "step", ("dit",)),
    ("edit", "decode", ("vae_decoder",)),
)
# The same work as another one's.
SAME = {("edit", "vision"): ("ask", "vision"), ("edit", "decode"): ("generate", "decode")}


def weight_bytes(config: MobileOConfig, component: str, dtype: mx.Dtype, bits: Mapping[str, int]) -> int:
    """What a component's weights take, by the modules that loading makes; nothing is computed."""
    from mobileo_mlx.checkpoints.modules import named_parameters, preserve_rng_state
    from mobileo_mlx.checkpoints.quantize import QuantizeSpec, quantized_skeleton
    from mobileo_mlx.models.mobileo import build

    class Everything:
        def __contains__(self, name: object) -> bool:
            return True

    with preserve_rng_state():
        module = build(component, config)
        if component in bits:
            module = quantized_skeleton(module, Everything(), QuantizeSpec(bits[component]))
    module.set_dtype(dtype)
    return sum(array.nbytes for array in named_parameters(module).values())


def measure(model: MobileO, bits: Mapping[str, int], dtype: mx.Dtype) -> Iterator[dict[str, Any]]:
    """Runs each phase once, alone in memory.

    Returns:
        for each its "task", "phase" and "components", and in GB: "weights_gb", what these take by accounting in the
        dtype and bits that are measured; "loaded_gb", the same, measured; "peak_gb", what was in use at most; and
        "above_gb", what of the peak is no weights.
    """
    model.parts.keep_loaded = False
    done: dict[tuple[str, str], dict[str, Any]] = {}
    for task, name, components in PHASES:
        if (twin := SAME.get((task, name))) is not None:
            yield done[twin] | {"task": task}
            continue
        say(f"{task}: {name}")
        model.release()
        gc.collect()
        before = mx.get_active_memory()
        for component in components:
            mx.eval(model.parts[component].parameters())
        loaded = mx.get_active_memory() - before
        run = _phase(model, task, name)
        mx.clear_cache()
        mx.reset_peak_memory()
        run()
        peak = mx.get_peak_memory() - before
        del run
        done[task, name] = {
            "task": task,
            "phase": name,
            "components": list(components),
            "weights_gb": sum(weight_bytes(model.config, c, dtype, bits) for c in components) / GB,
            "loaded_gb": loaded / GB,
            "above_gb": (peak - loaded) / GB,
            "peak_gb": peak / GB,
        }
        yield done[task, name]
    model.release()


def _phase(model: MobileO, task: str, name: str) -> Callable[[], object]:
    """A phase with its inputs, which are in memory already."""
    from mobileo_mlx.checkpoints.modules import preserve_rng_state
    from mobileo_mlx.decoding import decode
    from mobileo_mlx.diffusion import denoise
    from mobileo_mlx.models.mobileo import build
    from mobileo_mlx.schedulers import make_scheduler

    from .synthetic import random_image

    config = model.config
    length = POSITIONS if task != "generate" else PROMPT_TOKENS
    width, height = config.default_size
    latents = noise(model.config, 0, width, height)
    if name == "vision":
        image = random_image(config.image_size)
        return lambda: mx.eval(encode_image(model.parts, image))
    if name == "step":
        dit = model.parts.pop_dit()
        states = mx.random.normal((2, length, config.dit.caption_channels)).astype(dit.scale_shift_table.dtype)
        mx.eval(states, latents)
        with preserve_rng_state():
            halo = cast("MobileConditioningProjector", build("diffusion_connector", config)).halo
        scheduler = make_scheduler("dpm++", 20, 3.0)
        text, unconditional = TextInput(states[1:]), TextInput(states[:1], halo=halo)
        steps = denoise(
            dit, scheduler, latents, text, unconditional=unconditional, guidance_scale=GUIDANCE, donate=True
        )
        del dit
        return lambda: [next(steps) for _ in range(2)]
    if (task, name) == ("generate", "decode"):
        mx.eval(latents)
        return lambda: mx.eval(decode_latents(model.parts, latents))
    ids = [i % config.llm.vocab_size for i in range(length)]
    if name == "encode":
        parts = model.parts

        def encode() -> None:
            states = hidden_states(parts, embed_prompts(parts.llm.embed_tokens, [ids]))
            mx.eval(text_input(parts, states).states, unconditional_input(parts, states).states)

        return encode
    llm = model.parts.llm
    cache = llm.make_cache()
    tokens = decode(llm, model.parts.lm_head, llm.embed_tokens(mx.array([ids])), cache, max_tokens=9)
    if name == "prefill":
        return lambda: next(tokens)
    next(tokens)
    mx.eval([layer.state for layer in cache])
    return lambda: list(tokens)
