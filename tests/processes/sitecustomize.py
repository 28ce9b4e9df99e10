"""What a process of the suite computes on and in, by two variables of the environment.

- MOBILEO_TEST_DEVICE: `cpu` (the default), also on a machine with a GPU; or `gpu`. For the tests of `tests/metal` there
  is `forms` besides: what they run on a GPU runs on a CPU, in the forms of a GPU.
- MOBILEO_TEST_DTYPE: `float16` or `bfloat16`, what a component computes in where no dtype is asked for, in place of
  this machine's. With float16 the autoencoder computes in float32, as it does on a Mac.

`tests/conftest.py` sets both in its own process, and puts this folder into PYTHONPATH: Python imports a module of this
name when it starts, so that the processes that tests start compute as the tests do. They import MLX when they need it
and no earlier, so the settings wait for the modules that they concern.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def device() -> str:
    return os.environ.get("MOBILEO_TEST_DEVICE") or "cpu"


def set_device(mx: Any) -> None:
    """Of `mlx.core`: a CPU unless a GPU is asked for."""
    if device() != "gpu":
        mx.set_default_device(mx.cpu)


def set_default_dtype(precision: Any) -> None:
    """Of `mobileo_mlx.checkpoints.precision`, as a Mac's GPU would have it."""
    if name := os.environ.get("MOBILEO_TEST_DTYPE"):
        dtype = precision.DTYPES[name]
        autoencoder = precision.DTYPES["float32" if name == "float16" else name]
        precision.default_dtype = lambda component, stored: autoencoder if component.startswith("vae_") else dtype


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as Python does, and calls the function of one of these once it has been imported."""

    def __init__(self, functions: dict[str, Callable[[ModuleType], None]]):
        self.functions = functions

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        function = self.functions.pop(name, None)
        spec = importlib.util.find_spec(name) if function is not None else None
        if function is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            function(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Finder({"mlx.core": set_device, "mobileo_mlx.checkpoints.precision": set_default_dtype}))
