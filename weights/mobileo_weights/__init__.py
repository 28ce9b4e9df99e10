"""Data: models that come with the program, and the tensors' names and shapes of the official checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES = ("0.5B", "1.5B")  # of the official checkpoints

_ROOT = Path(__file__).parent


def bundled() -> dict[str, Path]:
    """The models in this package: the name that `--model` takes, and the folder."""
    return {folder.parent.name: folder.parent for folder in sorted(_ROOT.glob("models/*/config.json"))}


def goldens(model: str) -> Path:
    """The file of what a bundled model makes of fixed inputs; see `mobileo_mlx.doctor.goldens`."""
    return _ROOT / "goldens" / f"{model}.safetensors"


def manifest(size: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official checkpoint of a size ("0.5B" or "1.5B"): its name and its shape in PyTorch."""
    return {name: tuple(shape) for name, shape in _read(size)["tensors"].items()}


def upstream_config(size: str) -> dict[str, Any]:
    """The `config.json` of the official checkpoint of a size ("0.5B" or "1.5B")."""
    return _read(size)["config"]


def _read(size: str) -> dict[str, Any]:
    return json.loads((_ROOT / "manifests" / f"{size}.json").read_text(encoding="utf-8"))
