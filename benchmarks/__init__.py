"""Measurements: speed, memory, operation counts, parity with the original, quality on the shapes world."""

import mobileo_mlx  # noqa: F401 - on Linux it has to load the fast BLAS before MLX is imported anywhere
