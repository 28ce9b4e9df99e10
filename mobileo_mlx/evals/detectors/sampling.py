"""Maps at places between their pixels: bilinear sampling and resizing, in plain operations of MLX.

Both count as PyTorch does with `align_corners=False`: pixel i covers the places from i to i + 1, and its value is that
of its centre.
"""

from __future__ import annotations

import mlx.core as mx


def sample(maps: mx.array, x: mx.array, y: mx.array) -> mx.array:
    """Values between pixels, as PyTorch's `grid_sample` (bilinear, zeros outside) gives them.

    Args:
        maps: (N, H, W, C).
        x, y: (N, P) places in pixels, where the first centre is at 0; anywhere, outside too.

    Returns:
        (N, P, C).
    """
    count, height, width, channels = maps.shape
    flat = maps.reshape(count, height * width, channels)
    left, top = mx.floor(x), mx.floor(y)
    total = mx.zeros((1, 1, 1), maps.dtype)
    for row, part_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, part_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # Clipped before they become integers: a place may be beyond all of them.
            index = (mx.clip(row, 0, height - 1) * width + mx.clip(column, 0, width - 1)).astype(mx.int32)
            weight = mx.where(inside, part_y * part_x, 0)
            total = total + mx.take_along_axis(flat, index[..., None], axis=1) * weight[..., None]
    return total


def resize(x: mx.array, size: tuple[int, ...]) -> mx.array:
    """(B, H, W, C) to (B, *size, C), bilinear; what lies beyond the outer centres has their values.

    As PyTorch's `interpolate` without antialiasing: of a map that becomes smaller, two pixels a side count.
    """
    for axis, length in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != length:
            x = _resize_axis(x, axis, length)
    return x


def _resize_axis(x: mx.array, axis: int, length: int) -> mx.array:
    size = x.shape[axis]
    place = mx.maximum((mx.arange(length) + 0.5) * (size / length) - 0.5, 0)
    first = mx.minimum(mx.floor(place).astype(mx.int32), size - 1)
    second = mx.minimum(first + 1, size - 1)
    shape = [length if i == axis else 1 for i in range(x.ndim)]
    part = (place - first).reshape(shape)
    return mx.take(x, first, axis) * (1 - part) + mx.take(x, second, axis) * part
