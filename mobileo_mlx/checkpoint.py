"""The earlier name of `mobileo_mlx.checkpoints.checkpoint`, for scripts written against it."""

from .checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
