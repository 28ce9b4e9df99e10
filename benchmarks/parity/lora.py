"""The cases of an adapter that the PEFT library wrote for the original: beside the weights, and merged into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from mobileo_mlx.checkpoints.adapters import Adapter
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.checkpoints.precision import parse_dtypes
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.training.lora import load_lora

from .compare import Check, compare, equal, tolerance, unexercised
from .goldens import Case, Goldens
from .networks import Outputs

_FOLDER = "lora_adapter"  # beside the goldens
_PREFIX = "model."  # of the language model's tensors upstream


def lora(goldens: Goldens, model: MobileO) -> Iterator[Check]:
    """Every case of `lora`, and the tensors that merging must leave alone.

    Raises:
        MobileOError: the adapter is not beside the goldens, or is damaged.
    """
    adapter = Adapter.open(goldens.folder / _FOLDER)
    merged = MobileO(Parts(model.checkpoint, dtypes=parse_dtypes("float32"), adapters=[adapter]))
    beside = MobileO(Parts(model.checkpoint, dtypes=parse_dtypes("float32")))
    load_lora({"llm": beside.parts.llm}, adapter)
    weights = {_PREFIX + name: array for name, array in named_parameters(merged.parts.llm).items()}
    for case in goldens.cases():
        outputs: Outputs = dict(weights)
        for name, variant in (("base", model), ("adapter", beside), ("merged", merged)):
            outputs |= {f"{name}_{output}": array for output, array in _forward(case, variant).items()}
        for name, spec in case.expected.items():
            if name not in outputs:
                yield unexercised(case.component, case.name, name)
                continue
            expected = goldens.expected(case, name)
            allowed = tolerance(case.component, name, str(expected.dtype))
            rounding = spec.get("f32_vs_f64_max_abs")
            yield compare(case.component, case.name, name, np.array(outputs[name]), expected, allowed, rounding)
    for key in goldens.unlisted:
        yield unexercised(goldens.component, key, "*", "the index does not list this tensor")
    # No part of this are the hashes of what is merged: a sum's last bit depends on the order in a matrix product.
    changed = {f"{_PREFIX}{path}.weight" for path in adapter.low_rank.get("llm", {})}
    for name, sha256 in goldens.index.get("merged_weight_sha256_16", {}).items():
        if name not in changed:
            found = hashlib.sha256(np.array(weights[name]).tobytes()).hexdigest()[:16] if name in weights else None
            yield equal(goldens.component, "merged_weights", f"{name} sha256", found, sha256)


def _forward(case: Case, model: MobileO) -> Outputs:
    if "input_ids" not in case.inputs:
        return {}
    network = model.parts.llm
    embeds = network.embed_tokens(mx.array(case.inputs["input_ids"]))
    states = network.hidden_states(embeds, len(network.layers) + 1)
    return {"hidden_states": mx.stack(states), "logits": model.parts.lm_head(states[-1])}
