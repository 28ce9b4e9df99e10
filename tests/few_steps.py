"""Few-step adapters with random values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from random_adapter import write_random_adapter

from mobileo_mlx.checkpoints.adapters import CONFIG_FILE, WEIGHTS_FILE
from mobileo_mlx.checkpoints.tensor_files import read_header, read_tensors, write_tensors
from mobileo_mlx.training.lora import LoRAConfig

DRAWING = {"steps": 4, "guidance_scale": 1.0, "scheduler": "euler"}


def write_student(folder: Path, model: Path, drawing: Any = DRAWING, components: tuple[str, ...] = ("dit",)) -> Path:
    """Writes an adapter that says how to draw, as `finetune --objective consistency` does."""
    write_random_adapter(folder, model, LoRAConfig(rank=2, alpha=1, components=components))
    change_config(folder, drawing=drawing)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    """Sets keys of an adapter's configuration."""
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def scale_tensors(folder: Path, factor: float) -> None:
    """Multiplies all values of an adapter."""
    file = folder / WEIGHTS_FILE
    tensors = {name: factor * array for name, array in read_tensors(read_header(file)).items()}
    mx.eval(tensors)
    write_tensors(folder / "new.safetensors", tensors)
    (folder / "new.safetensors").replace(file)
