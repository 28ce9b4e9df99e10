"""BatchNorm (arXiv 1502.03167) whose statistics are computed and kept in float32, whatever the network computes in.

MLX's own adds in the dtype of its input. Over the pixels of a batch in bfloat16 that is wrong by percents on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_STATISTICS = ("running_mean", "running_var")


class BatchNorm(nn.BatchNorm):
    """Over all but the last axis; the result has the dtype of the input.

    In training mode the statistics are those of the batch, and `running_mean` and `running_var` follow them; otherwise
    these are taken. Both are float32, and `set_dtype` leaves them so.
    """

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.astype(mx.float32)).astype(x.dtype)

    def set_dtype(self, dtype: mx.Dtype, *predicate: Any) -> None:
        with statistics_kept(self):
            super().set_dtype(dtype, *predicate)


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Whatever happens to the parameters of a network meanwhile, its BatchNorms keep their statistics, in float32.

    MLX's `set_dtype` casts all parameters at once and asks no module; so it is for a network to use this.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    kept = [{name: norm[name].astype(mx.float32) for name in _STATISTICS} for norm in norms]
    try:
        yield
    finally:
        for norm, statistics in zip(norms, kept, strict=True):
            norm.update(statistics)
