"""A stage of FastViTHD's RepMixer blocks on channel planes, without which the whole tower takes 1.3 times as long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import backend
from ..activations import gelu
from .channel_planes import Planes, depthwise, feed_forward


def suits(blocks: Sequence[Any]) -> bool:
    """Whether this is for a stage: on a CPU, where its linear layers are plain ones, neither quantized nor adapted."""
    layers = (layer for block in blocks for layer in (block.convffn.fc1, block.convffn.fc2))
    return backend.on_cpu() and all(type(layer) is nn.Linear for layer in layers)


def run(blocks: Sequence[Any], x: mx.array) -> mx.array:
    """What the blocks make of a map, up to rounding; the dtype stays.

    Args:
        blocks: `RepMixerBlock`s.
        x: (B, H, W, C).
    """
    planes = Planes.of(x)
    for block in blocks:
        planes = _run_block(block, planes)
        mx.eval(planes.values)
    return planes.whole().astype(x.dtype)


def _run_block(block: Any, x: Planes) -> Planes:
    """The norm is folded into what is before and after it, the layer's scale into the second linear layer."""
    mixer, ffn, scale = block.token_mixer.reparam_conv, block.convffn, block.layer_scale
    x = depthwise(x, mixer.weight, mixer.bias)
    gain, shift = ffn.conv.affine()
    (w1, b1), (w2, b2) = (
        (layer.weight.astype(mx.float32), layer.bias.astype(mx.float32)) for layer in (ffn.fc1, ffn.fc2)
    )
    y = depthwise(x, ffn.conv.conv.weight * gain[:, None, None, None])
    first, second = (w1, b1 + w1 @ shift), (w2 * scale[:, None], b2 * scale)
    return replace(x, values=feed_forward(y.values, x.values, first, second, gelu))
