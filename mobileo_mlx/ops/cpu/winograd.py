"""Dense 3x3 convolutions with a fourth of the multiplications: Winograd's F(4x4, 3x3), in float32.

With the points 0, 1, -1, 1/2, -2 and infinity, six inputs d and three taps g give four outputs of a correlation,

    y = A' [(G g) * (B' d)],   A = V(6, 4), G = V(6, 3), B' = V(6, 6)^-T,   V(n, k)[i, j] = point_i ^ j,

which is polynomial multiplication by values at points, transposed. In two dimensions the matrices are Kronecker
products. All three steps are matrix products over all tiles at once, the middle one a product of channels for each of
the 36 values, so that a CPU's BLAS does the work. The rounding error is five to seven times that of the plain sum, 2e-6
of the result's size: for float32 only. See Lavin and Gray (arXiv 1509.09308), and for the points Barabasz et al.
(arXiv 1803.10986).
"""

from __future__ import annotations

import functools

import mlx.core as mx

TILE = 4  # outputs of a tile in each direction
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity, the last
_SIZE = len(_POINTS) + 1  # inputs of a tile in each direction

# A weight, and which of the points it has values at, by rows and by columns.
Phase = tuple[mx.array, range, range]

_ALL = range(_SIZE)
_UPPER, _LOWER = range(_SIZE - 1), range(1, _SIZE)


def pays(weight: mx.array, width: int) -> bool:
    """Whether it is faster than MLX's convolution: where a weight meets enough pixels to be worth transforming."""
    dim_out, height, _, dim_in = weight.shape
    return height == 3 and min(dim_out, dim_in) >= 32 and width >= 64


def transform(weight: mx.array) -> list[Phase]:
    """The values of a weight (O, 3, 3, I) at all points, (6, 6, I, O) float32: four times as large."""
    return [_phase(weight.astype(mx.float32), _ALL, _ALL)]


def transform_upsampling(weight: mx.array) -> list[Phase]:
    """The same for an image that is made twice as large by repeating pixels: for each of the four new pixels a weight.

    Three rows of repeated pixels are two rows of the small image, the nearer one twice: on the rows above, here and
    below, the upper pixel has the taps w0, w1 + w2 and 0, the lower one 0, w0 + w1 and w2. So too for columns. A
    polynomial without its last coefficient is 0 at infinity and one without its first is 0 at 0: one point less for
    each, 25 products for 16 outputs instead of the 144 of the large image.
    """
    w = weight.astype(mx.float32)
    phases = []
    for rows, row_points in _folded(w, axis=1):
        for taps, column_points in _folded(rows, axis=2):
            phases.append(_phase(taps, row_points, column_points))
    return phases


def convolve(x: mx.array, phases: list[Phase], zeros: int = 0) -> mx.array:
    """A 3x3 convolution without padding of rows and with a column of zeros on each side.

    Args:
        x: (B, rows + 2 - 2 zeros, W, I).
        phases: the weight by `transform`, or by `transform_upsampling`.
        zeros: rows of them that are missing above and below.

    Returns:
        (B, s rows, s W, O) float32, s = 1 or 2.
    """
    batch, rows, width, dim = x.shape
    rows += 2 * zeros - 2
    high, wide = -(-rows // TILE), -(-width // TILE)
    below = zeros + high * TILE - rows
    x = mx.pad(x.astype(mx.float32), [(0, 0), (zeros, below), (1, wide * TILE - width + 1), (0, 0)])
    _, height, columns, _ = x.shape
    shape = (_SIZE, _SIZE, batch, high, wide, dim)
    strides = (columns * dim, dim, height * columns * dim, TILE * columns * dim, TILE * dim, 1)
    tiles = mx.as_strided(x, shape, strides).reshape(_SIZE**2, -1)
    values = (_matrix("B", _ALL, _ALL) @ tiles).reshape(_SIZE, _SIZE, -1, dim)
    outputs = []
    for weight, row_points, column_points in phases:
        products = (
            values[row_points.start : row_points.stop, column_points.start : column_points.stop] @ weight
        )  # (points, points, tiles, O)
        outputs.append(_matrix("A", row_points, column_points) @ products.reshape(weight.shape[0] ** 2, -1))
    side = 1 if len(phases) == 1 else 2
    y = mx.stack(outputs).reshape(side, side, TILE, TILE, batch, high, wide, -1)
    y = y.transpose(4, 5, 2, 0, 6, 3, 1, 7).reshape(batch, high * TILE * side, wide * TILE * side, -1)
    return y[:, : rows * side, : width * side]


def _folded(w: mx.array, axis: int) -> list[tuple[mx.array, range]]:
    """Of the upper and the lower of two repeated rows (or columns) the taps on the small image, and the points."""
    w0, w1, w2 = mx.split(w, 3, axis)
    zero = mx.zeros_like(w0)
    return [
        (mx.concatenate([w0, w1 + w2, zero], axis), _UPPER),
        (mx.concatenate([zero, w0 + w1, w2], axis), _LOWER),
    ]


def _phase(weight: mx.array, rows: range, columns: range) -> Phase:
    dim_out, _, _, dim_in = weight.shape
    taps = weight.transpose(1, 2, 3, 0).reshape(9, -1)
    values = (_matrix("G", rows, columns) @ taps).reshape(len(rows), -1, dim_in, dim_out)
    return values, rows, columns


@functools.cache
def _matrix(name: str, rows: range, columns: range) -> mx.array:
    """The Kronecker product of G, B' or A' at these points with itself, float32, computed in float64."""
    import numpy as np

    def powers(count: int) -> np.ndarray:
        infinity = [0.0] * (count - 1) + [1.0]
        return np.array([[point**j for j in range(count)] for point in _POINTS] + [infinity])

    if name == "G":
        matrices = powers(3)[list(rows)], powers(3)[list(columns)]
    elif name == "B":
        inverse = np.linalg.inv(powers(_SIZE)).T
        matrices = inverse[list(rows)], inverse[list(columns)]
    else:
        matrices = powers(TILE)[list(rows)].T, powers(TILE)[list(columns)].T
    return mx.array(np.kron(*matrices).astype(np.float32))
