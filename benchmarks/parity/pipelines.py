"""The cases of everything around the networks: samplers, pictures, and whole drawings."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.conditioning import embed_prompts, encode_image, hidden_states, text_input, unconditional_input
from mobileo_mlx.diffusion import denoise
from mobileo_mlx.images import cover_crop, load_image, pad_to_square, preprocess, to_signed
from mobileo_mlx.latents import decode_latents
from mobileo_mlx.models.mcp import annealed_temperature
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.schedulers import Scheduler, make_scheduler

from .compare import Check, Tolerance, compare, equal, tolerance, unexercised
from .goldens import Case, GoldenError, Goldens
from .networks import Outputs, nchw, nhwc

_SAMPLERS = {"dpm": "dpm++", "euler": "euler"}


def drawing(case: Case, model: MobileO) -> Outputs:
    """Cases of `generate` and `edit`: from ids (and pixel values) and noise to the image."""
    if not {"input_ids", "noise"} <= case.inputs.keys() or not {"steps", "guidance_scale"} <= case.params.keys():
        return {}
    guidance = case.params["guidance_scale"]
    guidance = 1.0 if guidance is None else float(guidance)
    features = (
        list(encode_image(model.parts, nhwc(case.inputs["pixel_values"]))) if "pixel_values" in case.inputs else []
    )
    states = hidden_states(
        model.parts, embed_prompts(model.parts.llm.embed_tokens, case.inputs["input_ids"].tolist(), features)
    )
    text = text_input(model.parts, states)
    unconditional = None if guidance == 1 else unconditional_input(model.parts, states)
    halves = [text.states]
    if unconditional is not None:
        halves.insert(0, mx.broadcast_to(unconditional.states, text.states.shape))
    config = model.config
    scheduler = make_scheduler("dpm++", case.params["steps"], config.flow_shift, config.num_train_timesteps)
    steps = list(
        denoise(
            model.parts.dit,
            scheduler,
            nhwc(case.inputs["noise"]),
            text,
            unconditional=unconditional,
            guidance_scale=guidance,
        )
    )
    final = steps[-1].latents
    return {
        "conditioning": mx.concatenate(halves),
        "latents": mx.stack([nchw(step.latents) for step in steps]),
        "model_outputs": mx.stack([nchw(step.velocity) for step in steps]),
        "final_latents": nchw(final),
        "image": mx.clip(decode_latents(model.parts, final) / 2 + 0.5, 0, 1),
        "image_u8": np.stack([np.asarray(image) for image in model.decode_latents(final)]),
    }


def schedulers(case: Case, goldens: Goldens) -> Outputs:
    """Tables, and trajectories on the velocity tanh(a x + b t / 1000 + c)."""
    family = case.name.split("_")[0]
    sizes = {name: spec["shape"][0] for name, spec in case.expected.items()}
    count = sizes.get("timesteps", sizes.get("samples"))
    if family not in _SAMPLERS or count is None:
        return {}
    euler, dpm = goldens.index.get("euler_config", {}), goldens.index.get("dpm_config", {})
    shift = euler.get("shift", 1.0) if family == "euler" else dpm.get("flow_shift", 1.0)
    train_timesteps = (euler if family == "euler" else dpm).get("num_train_timesteps", 1000)
    scheduler = make_scheduler(_SAMPLERS[family], count, shift, train_timesteps)
    if "samples" not in case.expected:
        # Training's table ends before the zero.
        return {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas[: sizes.get("sigmas")]}
    if not {"a", "b", "c", "x_T"} <= case.inputs.keys():
        return {}
    return _trajectory(scheduler, {name: mx.array(x) for name, x in case.inputs.items()})


def _trajectory(scheduler: Scheduler, inputs: dict[str, mx.array]) -> Outputs:
    x, history = inputs["x_T"], list[mx.array]()
    samples, velocities = [], []
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        velocities.append(mx.tanh(inputs["a"] * x + inputs["b"] * (timestep / 1000) + inputs["c"]))
        x, x_0 = scheduler.step(index, x, velocities[-1], history)
        history = [x_0]
        samples.append(x)
    return {"samples": mx.stack(samples), "velocities": mx.stack(velocities)}


def pictures(case: Case, goldens: Goldens) -> Outputs:
    """From a PNG to what the tower sees, at any size that a tensor's name asks for."""
    if "png" not in case.params:
        return {}
    path = goldens.folder / case.params["png"]
    if not path.is_file():
        raise GoldenError(f"'{path}' is missing; copy the reference directory again.")
    image = load_image(path, background=None)
    outputs: Outputs = {"rgb": np.asarray(image), "square": np.asarray(pad_to_square(image))}
    for name, spec in case.expected.items():
        if (found := re.fullmatch(r"pixel_values_(\d+)", name)) is not None:
            outputs[name] = nchw(preprocess(image, int(found[1])))
        elif (found := re.fullmatch(r"train_(\d+)", name)) is not None:
            side = int(found[1])
            outputs[name] = nchw(to_signed(cover_crop(image, side, side)))[0]
        elif (found := re.fullmatch(r"pixels_(\d+)_u8_(stride\d+|patch)", name)) is not None:
            # Which pixels they are is said in words alone.
            part = _part(spec.get("description", ""))
            if part is not None:
                outputs[name] = _levels(image, int(found[1]))[part].transpose(2, 0, 1)
    return outputs


def picture_hashes(case: Case, goldens: Goldens) -> list[Check]:
    """The SHA-256 of all pixels, where only samples of them are stored."""
    checks = []
    for name, expected in case.params.items():
        if (found := re.fullmatch(r"pixels_(\d+)_u8_hwc_sha256", name)) is not None:
            levels = _levels(load_image(goldens.folder / case.params["png"], background=None), int(found[1]))
            digest = hashlib.sha256(np.ascontiguousarray(levels).tobytes()).hexdigest()
            checks.append(equal(case.component, case.name, name, digest, expected))
        elif "sha256" in name:
            checks.append(unexercised(case.component, case.name, name))
    return checks


def _levels(image: Any, size: int) -> np.ndarray:
    """What the tower sees, as (size, size, 3) uint8."""
    return np.round(np.array(preprocess(image, size))[0] * 255).astype(np.uint8)


def _part(description: str) -> tuple[slice, slice] | None:
    """Rows and columns: "every 16th pixel from offset 8", or "rows 480..543, columns 400..463"."""
    if (found := re.search(r"every (\d+)\w* pixel from offset (\d+)", description)) is not None:
        every = slice(int(found[2]), None, int(found[1]))
        return every, every
    if (found := re.search(r"rows (\d+)\.\.(\d+), columns (\d+)\.\.(\d+)", description)) is not None:
        top, bottom, left, right = map(int, found.groups())
        return slice(top, bottom + 1), slice(left, right + 1)
    return None


def annealing(goldens: Goldens, model: MobileO) -> list[Check]:
    """What the connector's index holds beside its cases: temperatures, and how many hidden states are mixed."""
    component, allowed = goldens.component, tolerance(goldens.component, "", "float32")
    checks = []
    for name, table in goldens.index.get("anneal_temperature", {}).items():
        found = re.fullmatch(r"total_(\d+)_min_([\d.]+)", name)
        if found is None:
            checks.append(unexercised(component, "anneal_temperature", name))
            continue
        epochs, minimum = int(found[1]), float(found[2])
        ours = np.array([annealed_temperature(epoch, epochs, minimum) for epoch in range(len(table))])
        checks.append(compare(component, "anneal_temperature", name, ours, np.array(table), allowed))
    if "num_layers" in goldens.index:
        mixed = model.config.diffusion_connector.num_layers
        checks.append(equal(component, "checkpoint", "num_layers", mixed, goldens.index["num_layers"]))
    if "stored_temperature" in goldens.index:
        temperature = np.array(model.parts.diffusion_connector.temperature)
        stored = np.array(goldens.index["stored_temperature"])
        checks.append(compare(component, "checkpoint", "temperature", temperature, stored, Tolerance("absolute", 0)))
    return checks
