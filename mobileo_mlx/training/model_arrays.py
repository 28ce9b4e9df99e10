"""What training changes of a model, by file and name, as checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

Arrays = dict[str, dict[str, mx.array]]  # file stem to named arrays


class ModelArrays:
    """Trained parameters, and the running statistics of BatchNorms, by their names in the model.

    Args:
        model: whose arrays they are.

    Attributes:
        texts: further files of a checkpoint, by name.
    """

    texts: Mapping[str, str] = MappingProxyType({})

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def get(self) -> Arrays:
        """The arrays, not evaluated."""
        trained = by_name(self._model.trainable_parameters())
        changing = {
            name: value
            for name, value in by_name(self._model.parameters()).items()
            if name in trained or name.endswith(("running_mean", "running_var"))
        }
        return {"model": changing}

    def set(self, arrays: Arrays) -> None:
        """Puts arrays of these names, shapes and dtypes into the model."""
        self._model.update(tree_unflatten(list(arrays["model"].items())))


def by_name(tree: object) -> dict[str, mx.array]:
    """The arrays of a tree by their dotted names."""
    return tree_flatten(tree, destination={})  # type: ignore[return-value]
