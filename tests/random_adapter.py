"""Writes an adapter whose values are random, as training would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.training.lora import LoRAConfig, add_lora, write_adapter


def adapted_modules(model: Path, config: LoRAConfig, full: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The components that a run trains, at its end.

    Args:
        model: a model's folder.
        config: of the updates, which are strong enough to be seen in what is drawn and said.
        full: components all of whose parameters were trained.
    """
    loaded = MobileO.load(model, dtype="float32")
    modules = {name: loaded.parts[name] for name in {*config.components, *full}}
    for name, module in modules.items():
        if name not in full:
            module.freeze()
    add_lora(modules, config, key=mx.random.key(1))
    for number, module in enumerate(modules.values()):
        key = mx.random.key(number)
        for layer in module.modules():
            if "lora_b" in layer:
                key, own = mx.random.split(key)
                layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=own)
    for name in full:
        modules[name].apply(lambda x: 1.1 * x)
    return modules


def write_random_adapter(
    folder: Path, model: Path, config: LoRAConfig | None = None, full: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Writes an adapter for a model into a new folder.

    Returns:
        the modules that it was written from, for comparison.
    """
    config = config or LoRAConfig(rank=4, alpha=8)
    modules = adapted_modules(model, config, full)
    folder.mkdir()
    write_adapter(folder, modules, config, base_model=model)
    return modules
