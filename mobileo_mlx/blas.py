"""A fast BLAS for MLX's CPU backend on Linux.

MLX's Linux wheel brings the reference BLAS, whose float32 matrix products take some 25 times as long as OpenBLAS's on
one core (4 and 105 GFLOP/s). Both define the same symbols, and the first library in the process's global scope wins; so
loading another one there before MLX is imported is enough. On a Mac MLX uses Accelerate.

A library that is imported should not change the global scope of its process, so this is for programs to call. The
`mobileo-mlx` command does.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

OPENBLAS = "libopenblas.so.0"  # Debian and Ubuntu: libopenblas0-pthread
# What `pip install mkl` puts into the environment; x86-64 only. The OpenBLAS of the wheels scipy-openblas32, numpy and
# scipy can't serve: its symbols are renamed (scipy_cblas_sgemm), so that MLX does not find them.
_MKL = "lib/libmkl_rt.so.*"


def preload() -> bool:
    """Lets MLX find OpenBLAS, or else Intel's MKL, where one is installed. Has to be called before MLX is imported.

    Returns:
        whether MLX computes with a fast BLAS: with one of these, one that was loaded otherwise (LD_PRELOAD), or
        Accelerate.
    """
    if sys.platform == "linux" and not loaded() and "mlx.core" not in sys.modules:
        for library in (OPENBLAS, *sorted(map(str, Path(sys.prefix).glob(_MKL)))):
            try:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
                break
            except OSError:
                continue  # not installed, or not for this machine
    return bool(loaded())


def loaded() -> str:
    """The name of the fast BLAS that MLX's CPU backend finds: "OpenBLAS", "MKL" or "Accelerate"; "" where none."""
    if sys.platform == "darwin":
        return "Accelerate"
    if sys.platform != "linux":
        return ""
    # Extension modules and what they link are loaded into scopes of their own, so the one of MLX's wheel is not seen.
    scope = ctypes.CDLL(None)
    if not hasattr(scope, "cblas_sgemm"):
        return ""
    names = {"openblas_get_config": "OpenBLAS", "mkl_get_version": "MKL"}
    return next((name for symbol, name in names.items() if hasattr(scope, symbol)), "another BLAS")
