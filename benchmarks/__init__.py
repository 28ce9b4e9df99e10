"""Measurements: speed, memory, operation counts, parity with the original, quality on the shapes world."""

from mobileo_mlx import blas

blas.preload()  # before MLX is imported anywhere
