"""What the bundled model `tiny` makes of fixed inputs, phase by phase, computed in float32 on a CPU and kept in a file.

`python -m benchmarks.goldens` writes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from mobileo_weights import goldens
from PIL import Image

from ..checkpoints import precision
from ..conditioning import embed_prompts, hidden_states, read_images, text_input, unconditional_input
from ..decoding import decode
from ..diffusion import GenerationStep
from ..latents import decode_latents
from ..models.mobileo import COMPONENTS
from ..models.qwen2 import empty_cache
from ..pipeline import MobileO
from ..prompts import ask_prompt, encode_prompt, generate_prompt
from .comparison import BUDGETS, Budget, Comparison, coarsest, compare

MODEL = "tiny"
STEPS = 8


@dataclass(frozen=True)
class Inputs:
    """Of the computation.

    Attributes:
        image: (H, W, 3) uint8, what the question is about.
        noise: (1, h, w, latent_channels), where drawing starts.
        question, answer: about the image.
        prompt: what is drawn.
    """

    image: np.ndarray
    noise: np.ndarray
    question: str
    answer: str
    prompt: str


def read() -> tuple[Inputs, dict[str, np.ndarray]]:
    """The inputs, and by name what `compute` makes of them."""
    from safetensors import safe_open

    with safe_open(goldens(MODEL), framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = json.loads(file.metadata()["texts"])
    given = Inputs(arrays.pop("image"), arrays.pop("noise"), texts["question"], texts["answer"], texts["prompt"])
    return given, arrays


def write(path: Path, given: Inputs, results: Mapping[str, mx.array]) -> None:
    """Writes the file that `read` reads."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array) for name, array in results.items()}
    texts = {"question": given.question, "answer": given.answer, "prompt": given.prompt}
    # One text, as the order of several would change from file to file.
    save_file({"image": given.image, "noise": given.noise, **arrays}, path, metadata={"texts": json.dumps(texts)})


def compute(model: MobileO, given: Inputs, latents: mx.array | None = None) -> dict[str, mx.array]:
    """The results of each phase, evaluated: float32, or int32 of token ids.

    Args:
        model: the bundled one, which keeps its networks.
        given: the inputs.
        latents: what is decoded; by default what has been drawn.
    """
    parts = model.parts
    (features,) = read_images(parts, [Image.fromarray(given.image)])
    question = encode_prompt(model.tokenizer, ask_prompt(given.question))
    embeds = embed_prompts(parts.llm.embed_tokens, [question], [features]).inputs_embeds
    cache = empty_cache(model.config.llm.num_hidden_layers)
    tokens = list(
        decode(parts.llm, parts.lm_head, embeds, cache, max_tokens=16, eos_token_ids=model.config.eos_token_ids)
    )
    prompt = encode_prompt(model.tokenizer, generate_prompt(given.prompt))
    states = hidden_states(parts, embed_prompts(parts.llm.embed_tokens, [prompt]))
    results = {
        "question_ids": mx.array(question),
        "prompt_ids": mx.array(prompt),
        "answer_ids": mx.array([one.token for one in tokens]),
        "image_features": features,
        "logits": tokens[0].logits,
        "hidden_states": mx.stack(states),
        "conditioning": text_input(parts, states).states,
        "unconditional": unconditional_input(parts, states).states,
    }
    start = mx.array(given.noise)
    for step in model.stream_generate(given.prompt, steps=STEPS, initial_latents=start):
        if isinstance(step, GenerationStep):
            results[f"latents_{step.step}"] = step.latents
    decoded = results[f"latents_{STEPS}"] if latents is None else latents
    results["decoded"] = decode_latents(parts, decoded)
    results = {
        name: array.astype(mx.float32 if mx.issubdtype(array.dtype, mx.floating) else mx.int32)
        for name, array in results.items()
    }
    mx.eval(results)
    return results


def compare_bundled(dtype: str | None = None) -> list[Comparison]:
    """The bundled model on this device, with what the file has.

    Args:
        dtype: of all components; by default what each takes on this device.
    """
    model = MobileO.load(MODEL, dtype=dtype)
    dtypes = [precision.default_dtype(name, model.checkpoint.stored_dtype(name)) for name in COMPONENTS]
    if dtype is not None:
        dtypes = [precision.parse_dtype(dtype)]
    return compare_model(model, BUDGETS[coarsest(dtypes)][1])


def compare_model(model: MobileO, budget: Budget) -> list[Comparison]:
    """The bundled model as it is loaded, with what the file has. Token ids are either equal or not.

    What stops the computation, such as values that are not finite, is the one result.
    """
    given, expected = read()
    try:
        found = compute(model, given, mx.array(expected[f"latents_{STEPS}"]))
    except Exception as error:
        # Not narrower, as in `compare`.
        return [Comparison(MODEL, math.nan, math.nan, False, stopped_by=f"{type(error).__name__}: {error}")]
    compared = []
    for name, array in found.items():
        wanted = expected[name]
        if wanted.dtype == np.int32:
            same = np.array_equal(np.asarray(array), wanted)
            compared.append(Comparison(name, 1.0 - same, 1.0 - same, same))
        else:
            compared.append(compare(name, partial(mx.array, array), mx.array(wanted), budget))
    return compared
