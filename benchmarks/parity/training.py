"""The cases of training: the joint objective with its gradients, and steps of the optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from mobileo_mlx.conditioning import IGNORED_LABEL, hidden_states, text_input
from mobileo_mlx.latents import noised
from mobileo_mlx.models.mobileo import component_of, sanitize
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.training.losses import flow_matching_loss, upstream_sigmas
from mobileo_mlx.training.stages import STAGES, Group, make_optimizer, parameter_groups
from mobileo_mlx.training.trainable import Batch, JointLoss, TokenBatch, TrainableModel

from .compare import EXACT, Check, Tolerance, compare, equal, unexercised
from .goldens import Case, Goldens
from .hooks import taps
from .networks import Outputs, nchw, nhwc

_COMPONENTS = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")
_LOSS = Tolerance("relative", 1e-4)
_NORM = Tolerance("relative", 1e-3)
_KEY = mx.random.key(0)  # there is no dropout that would draw from it
_PARAMETER = Tolerance("absolute", 1e-5)


def training(goldens: Goldens, model: MobileO) -> Iterator[Check]:
    """Every case of `training`, each from the checkpoint's weights."""
    for case in goldens.cases():
        if not case.expected:
            yield Check(case.component, case.name, "*", "inputs", note="inputs of other cases")
            continue
        # Train mode changes BatchNorm's statistics, so each case has networks of its own.
        model.release()
        try:
            outputs, values = _case(case, model)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # A case of unknown make must not hide the others.
            yield unexercised(case.component, case.name, "*", f"{type(error).__name__}: {error}")
            continue
        for name, spec in case.expected.items():
            if name not in outputs:
                yield unexercised(case.component, case.name, name)
                continue
            expected = goldens.expected(case, name)
            allowed = _allowed(name, expected)
            rounding = spec.get("f32_vs_f64_max_abs")
            ours = np.array(outputs[name])
            yield compare(case.component, case.name, name, ours, expected, allowed, rounding)
        yield from _numbers(case, values)
    for key in goldens.unlisted:
        yield unexercised(goldens.component, key, "*", "the index does not list this tensor")


def train_steps(goldens: Goldens, model: MobileO) -> Iterator[Check]:
    """Steps of AdamW with upstream's parameter groups."""
    network = _network(model)
    groups = parameter_groups(network, STAGES["paper"], upstream=True)
    yield from _groups(goldens, groups, model)
    objective = JointLoss(upstream=True)
    for case in goldens.cases():
        batch = _batch(case.inputs, model, answers=True)
        before = dict(tree_flatten(network.parameters()))
        losses, norms = [], []
        optimizer = make_optimizer(groups)
        gradient = nn.value_and_grad(network, objective)
        for _ in case.params["losses"]:
            (loss, _), grads = gradient(network, batch, _KEY)
            clipped, norm = optim.clip_grad_norm(grads, case.params["max_grad_norm"])
            optimizer.update(network, clipped)
            mx.eval(network.parameters(), optimizer.state)
            losses.append(float(loss))
            norms.append(float(norm))
        after = dict(tree_flatten(network.parameters()))
        for name in case.expected:
            key = name.removeprefix("delta:")
            ours = _our_name(key, model)
            if ours is None or ours not in after:
                yield unexercised(case.component, case.name, name)
                continue
            expected = goldens.expected(case, name)
            value = after[ours] - before[ours] if name != key else after[ours]
            # Differences of nearly equal numbers have few digits.
            allowed = Tolerance("relative", 0.05) if name != key else _PARAMETER
            yield compare(case.component, case.name, name, np.array(value), expected, allowed)
        for name, values in (("losses", losses), ("grad_norms", norms)):
            yield _number(case, name, values, case.params[name], _LOSS)


def _allowed(name: str, expected: np.ndarray) -> Tolerance:
    if not np.issubdtype(expected.dtype, np.floating):
        return EXACT
    return Tolerance("relative", {"diffusion_pred": 5e-4}.get(name, 1e-3 if name.startswith("grad:") else 1e-4))


def _network(model: MobileO) -> TrainableModel:
    return TrainableModel({name: model.parts[name] for name in _COMPONENTS})


def _batch(inputs: dict[str, np.ndarray], model: MobileO, *, answers: bool) -> Batch:
    """The batch that a case's inputs describe; without `answers`, prompts have no image."""
    keep = inputs["attention_mask"].astype(bool)
    rows = zip(inputs["input_ids" if answers else "sft_input_ids"], keep, strict=True)
    ids = [row[kept].tolist() for row, kept in rows]
    labels = [row[kept].tolist() for row, kept in zip(inputs["labels"], keep, strict=True)]
    padding = inputs["input_ids"][~keep]
    sequences = TokenBatch(
        ids,
        labels,
        pixels=nhwc(inputs["und_image"]) if answers else None,
        padding=None if answers or not len(padding) else int(padding[0]),
    )
    encoder = model.parts.vae_encoder
    return Batch(
        drawing=sequences,
        answers=sequences if answers else None,
        latents=encoder(nhwc(inputs["gen_image"])) * model.config.vae.scaling_factor,
        noise=nhwc(inputs["noise"]),
        sigmas=upstream_sigmas(mx.array(inputs["u"]), model.config.num_train_timesteps),
        dropped=mx.zeros(len(ids), mx.bool_),
        answer_tokens=float(sum(label != IGNORED_LABEL for row in labels for label in row[1:])),
    )


def _case(case: Case, model: MobileO) -> tuple[Outputs, dict[str, Any]]:
    """Tensors by the index's names, and numbers by the names of the case's parameters."""
    network = _network(model)
    network.train("trainmode" in case.name)
    answers = case.params.get("ce_weight") is not None
    objective = JointLoss(answer_weight=case.params.get("ce_weight") or 0.0, upstream=True)
    batch = _batch(case.inputs, model, answers=answers)
    timesteps = model.config.num_train_timesteps * batch.sigmas

    # The original ran each case twice, once for what is seen inside; BatchNorm's statistics show it.
    inputs = network.inputs(batch.drawing)
    states = hidden_states(network, inputs, mask_padding=True)
    mask = mx.array(inputs.attention_mask)
    text = text_input(network, states, mask=mask, dropped=batch.dropped, connect_padding=True)
    with taps(network, {"dit": "dit"}) as seen:
        flow_matching_loss(network.dit, batch.latents, batch.noise, batch.sigmas, text.states, mask)
    outputs: Outputs = {
        "latents": nchw(batch.latents),
        "noisy_latents": nchw(noised(batch.latents, batch.noise, batch.sigmas)),
        "timesteps": timesteps,
        "conditioning": text.states,
        "dit_mask": inputs.attention_mask,
        "diffusion_pred": nchw(seen["dit"]),
        "logits": network.logits(states[-1]),
        "spliced_labels": inputs.labels,
    }
    (loss, parts), grads = nn.value_and_grad(network, objective)(network, batch, _KEY)
    gradients = dict(tree_flatten(grads))
    buffers = dict(tree_flatten(network.vision_tower.parameters()))
    for name in case.expected:
        if name.startswith("grad:") and (ours := _our_name(name[5:], model)) in gradients:
            outputs[name] = gradients[ours]
        elif name.endswith("_after"):
            outputs[name] = buffers.get(name.removesuffix("_after"))
    values: dict[str, Any] = {
        "losses": {"loss": loss, "diffusion_loss": parts["diffusion_loss"], "ce_loss": parts.get("answer_loss")},
        "grad_norms": {},
        "timesteps": timesteps.tolist(),
        "sigmas": batch.sigmas.tolist(),
        "indices": (model.config.num_train_timesteps - timesteps).tolist(),
    }
    values["parameters_without_gradient"] = [
        name for name in _parameters(model) if (ours := _our_name(name, model)) is None or not gradients[ours].any()
    ]
    for name in case.params.get("grad_norms", {}):
        ours = _our_name(name, model)
        if ours in gradients:
            values["grad_norms"][name] = float(np.linalg.norm(np.array(gradients[ours], np.float64)))
    return outputs, values


def _numbers(case: Case, values: dict[str, Any]) -> Iterator[Check]:
    """What a case holds beside its tensors."""
    params = case.params
    exact = params.get("losses_f64", {})
    rounding = max(
        (abs(loss / exact[name] - 1) for name, loss in params["losses"].items() if name in exact), default=None
    )
    for name, expected in params["losses"].items():
        yield _number(case, name, values["losses"][name], expected, _LOSS, rounding)
    rounding = max(params.get("grad_norms_rel_diff_f64", {}).values(), default=None)
    for name, expected in params.get("grad_norms", {}).items():
        if name in values["grad_norms"]:
            yield _number(case, f"norm:{name}", values["grad_norms"][name], expected, _NORM, rounding)
        else:
            yield unexercised(case.component, case.name, f"norm:{name}")
    for name in ("indices", "timesteps", "sigmas"):
        if name in params:
            yield _number(case, name, values[name], params[name], Tolerance("relative", 1e-6))
    if (expected := params.get("parameters_without_gradient")) is not None:
        ours = values["parameters_without_gradient"]
        ours = ours if isinstance(expected, list) else f"{len(ours)} parameters"
        yield equal(case.component, case.name, "parameters_without_gradient", ours, expected)


def _number(
    case: Case, name: str, ours: Any, expected: Any, allowed: Tolerance, rounding: float | None = None
) -> Check:
    """Compares numbers that the index gives among a case's parameters.

    Args:
        rounding: of the original, relative. It is the largest of all numbers of a kind: by chance a single one agrees
            much better with its float64 value than it was computed.
    """
    scale = float(np.abs(expected).max())
    absolute = None if rounding is None else rounding * scale
    return compare(case.component, case.name, name, np.array(ours), np.array(expected), allowed, absolute)


def _groups(goldens: Goldens, groups: list[Group], model: MobileO) -> Iterator[Check]:
    """The original's groups against ours: every parameter's rate and decay."""
    ours = {name: (group.learning_rate, group.weight_decay) for group in groups for name in group.names}
    seen = set()
    for i, group in enumerate(goldens.index.get("parameter_groups", [])):
        names = {ours_name for name in group["names"] if (ours_name := _our_name(name, model)) is not None}
        seen |= names
        settings = {name: ours.get(name) for name in names}
        expected = dict.fromkeys(names, (group["lr"], group["weight_decay"]))
        yield equal(goldens.component, "parameter_groups", f"group {i}", settings, expected)
    if seen:
        yield equal(goldens.component, "parameter_groups", "no others", sorted(ours.keys() - seen), [])


def _parameters(model: MobileO) -> Iterator[str]:
    """The original's names of all parameters that it trains, buffers left out."""
    for component in _COMPONENTS:
        for name, info in model.checkpoint.tensors(component).items():
            if not re.search(r"(running_mean|running_var|num_batches_tracked|temperature)$", name):
                yield info.key


def _our_name(name: str, model: MobileO) -> str | None:
    """Our network's name of a parameter of the original; None for the one that nothing uses."""
    found = component_of(name)
    if found is None:
        return None
    component, rest = found
    shape = model.checkpoint.tensors(component)[rest].shape
    renamed = sanitize(component, {rest: mx.zeros(shape)}, model.config)
    return next((f"{component}.{ours}" for ours in renamed), None)
