"""A full-size model with deterministic random weights, against sampled outputs of the original.

Minutes of computing in float32. Components are released as soon as they are done with, and networks are evaluated
block by block, so that memory stays at little more than the largest component.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.precision import parse_dtypes
from mobileo_mlx.checkpoints.tensor_files import read_tensors
from mobileo_mlx.conditioning import text_input, unconditional_input
from mobileo_mlx.diffusion import denoise
from mobileo_mlx.latents import decode_latents
from mobileo_mlx.models.mobileo import component_of
from mobileo_mlx.models.sana_cross_attention import TextInput
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.schedulers import make_scheduler

from .compare import Tolerance, compare, tolerance, unexercised
from .goldens import Case, GoldenError, Goldens, Reference
from .networks import Outputs, nchw, nhwc
from .runner import COMPONENTS, ParityReport

# The notes of the reference: these stacks are deeper than the tiny ones, so start from five times the tolerance.
DEPTH = 5
_COMPONENT_OF = {
    "vision_tokens": "vision",
    "projected": "vision",
    "hidden_states": "llm",
    "last_logits": "llm",
    "conditioning": "mcp",
    "decoded": "vae",
    "encoded": "vae",
}

Say = Callable[[str], None]


def run_fullsize(reference: Reference, checkpoint: Path, say: Say) -> ParityReport:
    """Compares a full-size checkpoint with the goldens that were made with the same weights.

    Args:
        checkpoint: a folder as `fullsize/write_fullsize.py` of the reference writes it, or one converted from it.
        say: gets a line of progress now and then.

    Raises:
        MobileOError: goldens or checkpoint are missing, damaged, or do not belong together.
    """
    model = MobileO(Parts(Checkpoint.open(checkpoint), dtypes=parse_dtypes("float32")))
    goldens = _matching(reference, model.checkpoint)
    say(f"{goldens.component}: the first weights are those of the goldens")
    given = _inputs(reference.path / "fullsize" / "fullsize_inputs.py")
    report = ParityReport(not_run=[name for name in COMPONENTS if name in reference.goldens or name == "prompts"])
    for case in goldens.cases():
        outputs: Outputs = {}
        for stage, made in _stages(case, model, given, say):
            outputs |= made
            say(f"{stage}: done, peak memory {mx.get_peak_memory() / 2**30:.1f} GiB")
        for name, spec in case.expected.items():
            base = name.removesuffix("_s")
            if base not in outputs:
                report.checks.append(unexercised(goldens.component, case.name, name))
                continue
            ours = _sampled(np.array(outputs[base]), spec.get("description", ""))
            allowed = _tolerance(base)
            rounding = spec.get("f32_vs_f64_max_abs")
            expected = goldens.expected(case, name)
            report.checks.append(compare(goldens.component, case.name, name, ours, expected, allowed, rounding))
    return report


def _matching(reference: Reference, checkpoint: Checkpoint) -> Goldens:
    """The goldens whose first weights are the checkpoint's."""
    if not reference.fullsize:
        raise GoldenError(f"'{reference.path}' has no fullsize/fullsize-*.json; copy the reference directory again.")
    differing = []
    for path in reference.fullsize:
        goldens = Goldens(path)
        different = [key for key, first in _first_weights(goldens).items() if not _begins(checkpoint, key, first)]
        if not different:
            return goldens
        differing.append(f"{different[0]} is not that of {path.name}")
    raise GoldenError(
        f"'{checkpoint.path}' has other weights than the goldens ({'; '.join(differing)}); write it with "
        f"'{reference.path / 'fullsize' / 'write_fullsize.py'}' and the NumPy version that the goldens name."
    )


def _first_weights(goldens: Goldens) -> dict[str, list[float]]:
    first = {}
    for text, values in goldens.index.get("first_weights", {}).items():
        found = re.fullmatch(r"(\S+)\[0\]\.flatten\(\)\[:\d+\]", text)
        if found is None:
            raise GoldenError(f"'{goldens.path}' has first weights of an unknown kind: {text}.")
        first[found[1]] = values
    return first


def _begins(checkpoint: Checkpoint, key: str, values: list[float]) -> bool:
    found = component_of(key)
    if found is None or not checkpoint.has(found[0]):
        return False
    infos = checkpoint.tensors(found[0])
    if found[1] not in infos:
        return False
    tensor = read_tensors({"first": infos[found[1]]})["first"]
    return tensor[0].flatten()[: len(values)].astype(mx.float32).tolist() == values


def _inputs(path: Path) -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("fullsize_inputs", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise GoldenError(f"'{path}' is missing; copy the reference directory again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.inputs()


def _stages(case: Case, model: MobileO, given: dict[str, np.ndarray], say: Say) -> Iterator[tuple[str, Outputs]]:
    """Each part of the model, with its full outputs by the names of the index, less the `_s` of samples."""
    tokens = model.parts.vision_tower.encode(nhwc(given["pixel_values"]))
    projected = model.parts.mm_projector(tokens)
    yield "vision", {"vision_tokens": _done(tokens), "projected": _done(projected)}
    model.release()

    llm = model.parts.llm
    states = llm.hidden_states(llm.embed_tokens(mx.array(given["input_ids"])), len(llm.layers) + 1)
    logits = model.parts.lm_head(states[-1][:, -1:])
    yield "language model", {"hidden_states": _done(mx.stack(states)), "last_logits": _done(logits)}
    states = states[-model.config.diffusion_connector.num_layers :]
    del llm, logits
    model.release()

    texts = unconditional_input(model.parts, states), text_input(model.parts, states)
    yield "connector", {"conditioning": _done(mx.concatenate([text.states for text in texts]))}
    model.release()

    yield from _denoising(case, model, nhwc(given["noise"]), *texts, say)
    model.release()

    decoded = model.parts.vae_decoder.decode(nhwc(given["latent"]))
    yield "decoder", {"decoded": _done(nchw(decoded))}
    model.release()

    encoded = model.parts.vae_encoder.encode(nhwc(given["image"]))
    yield "encoder", {"encoded": _done(nchw(encoded))}
    model.release()


def _denoising(
    case: Case, model: MobileO, noise: mx.array, unconditional: TextInput, text: TextInput, say: Say
) -> Iterator[tuple[str, Outputs]]:
    """Single forward passes, then whole drawings; their settings are in the goldens' names and descriptions."""
    dit = model.parts.dit
    for name in case.expected:
        if (found := re.fullmatch(r"dit_t(\d+)", name)) is not None:
            timestep = mx.full((2,), float(found[1]))
            sample = dit(
                mx.concatenate([noise, noise]),
                timestep,
                dit.encode_text(mx.concatenate([unconditional.states, text.states])),
            )
            yield name, {name: _done(nchw(sample))}
    described = case.expected.get("generate_final_latents", {}).get("description", "")
    settings = re.search(r"CFG ([\d.]+), (\d+) steps", described)
    if settings is None:
        return
    guidance, count = float(settings[1]), int(settings[2])
    scheduler = make_scheduler("dpm++", count, model.config.flow_shift, model.config.num_train_timesteps)
    latents = []
    for step in denoise(dit, scheduler, noise, text, unconditional=unconditional, guidance_scale=guidance):
        latents.append(step.latents)
        say(f"denoising step {step.step} of {step.steps}")
    del dit
    model.release()
    image = mx.clip(decode_latents(model.parts, latents[-1]) / 2 + 0.5, 0, 1)
    stack = _done(mx.stack([nchw(x) for x in latents]))
    yield (
        "generation",
        {
            "generate_final_latents": stack[-1],
            "generate_latents": stack,
            "generate_latents_step_std": stack.reshape(count, -1).std(axis=1, ddof=1),
            "generate_image": _done(image),
        },
    )


def _done(x: mx.array) -> np.ndarray:
    return np.array(x)


def _sampled(x: np.ndarray, description: str) -> np.ndarray:
    """The part of a tensor that is stored: `[:, ::16, ::24]` at the end, or "after steps 1, 6, 11"."""
    if (found := re.search(r"after steps ([\d, ]+)", description)) is not None:
        return x[[int(step) - 1 for step in found[1].split(",")]]
    if (found := re.search(r"\[([\d:,\s-]+)\]\s*$", description)) is not None:
        return x[tuple(_index(part.strip()) for part in found[1].split(","))]
    return x


def _index(text: str) -> Any:
    if ":" not in text:
        return int(text)
    return slice(*(int(part) if part else None for part in text.split(":")))


def _tolerance(name: str) -> Tolerance:
    if name.startswith("generate_"):
        kind = name.removeprefix("generate_")
        allowed = tolerance("generate", "image" if kind == "image" else "latents", "float32")
    else:
        allowed = tolerance(_COMPONENT_OF.get(name, "dit"), name, "float32")
    return Tolerance(allowed.measure, DEPTH * allowed.limit)
