"""A layer's result, strip by strip."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mobileo_mlx.ops.bands import joined


def streamed(layer: Any, x: mx.array) -> mx.array:
    """From strips of one, two and all other rows."""
    return joined(layer.stream(iter([x[:, :1], x[:, 1:3], x[:, 3:]])))
