"""Dense convolutions as matrix products and as other convolutions, where MLX's CPU backend is slow."""

from __future__ import annotations

import mlx.core as mx


def convolve_to_few(x: mx.array, weight: mx.array, zeros: int = 0) -> mx.array:
    """A convolution to a few channels: every tap's product first, then their sum.

    A CPU's convolution would first copy the many input channels for each tap.

    Args:
        x: (B, rows + kernel - 1 - 2 zeros, W, I).
        weight: (O, kernel, kernel, I).
        zeros: rows of them that are missing above and below.

    Returns:
        (B, rows, W, O).
    """
    dim_out, kernel, _, dim_in = weight.shape
    batch, height, width, _ = x.shape
    products = x @ weight.transpose(3, 1, 2, 0).reshape(dim_in, -1)
    products = products.reshape(batch, height, width, kernel, kernel, dim_out)
    products = mx.pad(products, [(0, 0), (zeros, zeros), (kernel // 2, kernel // 2), (0, 0), (0, 0), (0, 0)])
    rows = height + 2 * zeros - kernel + 1
    y = mx.zeros((batch, rows, width, dim_out), x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            y = y + products[:, i : i + rows, j : j + width, i, j]
    return y


def strided(x: mx.array, weight: mx.array) -> mx.array:
    """A 3x3 convolution of stride 2 without a stride: 2x2 over cells of 2x2 pixels.

    The gradient of a strided convolution is a plain loop on MLX's CPU backend, 30 times slower than this.

    Args:
        x: (B, H, W, I), H and W even.
        weight: (O, 3, 3, I).

    Returns:
        (B, H / 2, W / 2, O).
    """
    dim_out, _, _, dim_in = weight.shape
    batch, height, width, _ = x.shape
    # Row 2 i - 1 is the lower half of the cell above; its upper half has no weight. So too for columns.
    w = mx.pad(weight, [(0, 0), (1, 0), (1, 0), (0, 0)]).reshape(dim_out, 2, 2, 2, 2, dim_in)
    w = w.transpose(0, 1, 3, 5, 2, 4).reshape(dim_out, 2, 2, 4 * dim_in)
    cells = x.reshape(batch, height // 2, 2, width // 2, 2, dim_in).transpose(0, 1, 3, 5, 2, 4)
    cells = cells.reshape(batch, height // 2, width // 2, 4 * dim_in)
    return mx.conv2d(mx.pad(cells, [(0, 0), (1, 0), (1, 0), (0, 0)]), w)
