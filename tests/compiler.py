"""Whether `mx.compile` fuses and caches here: on Linux's CPU it needs g++, and does without where there is none."""

from __future__ import annotations

import sys

from mobileo_mlx.ops.cpu.fast_math import compiles

COMPILES = sys.platform != "linux" or compiles()
