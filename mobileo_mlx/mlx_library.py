"""Which of MLX's packages for Linux computes: mlx-cpu, mlx-cuda-12 and mlx-cuda-13 all bring the same file.

Of those that are installed the last one that was written counts. A plain installation needs mlx-cpu, so CUDA's library
has to be installed after it. pip does that (it installs first what depends on nothing, and mlx-cpu does not); others,
such as uv, install in an order of their own.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

CPU, CUDA = "mlx-cpu", ("mlx-cuda-12", "mlx-cuda-13")
_FILE = "mlx/lib/libmlx.so"


def installed() -> dict[str, str]:
    """The versions of these packages that are installed, by name; none on a Mac."""
    found = {}
    for name in (CPU, *CUDA) if sys.platform == "linux" else ():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def computing() -> str:
    """The package whose library MLX loads; "" where none is installed, or where it is nobody's."""
    for name in installed():
        for file in metadata.files(name) or ():
            path = Path(file.locate())
            if str(file) == _FILE and path.is_file() and path.stat().st_size == file.size:
                return name
    return ""


def hidden_cuda() -> str | None:
    """The command that puts CUDA's library in its place, where it is installed and another one computes."""
    name = next((name for name in CUDA if name in installed()), None)
    if name is None or computing() in CUDA:
        return None
    return f'pip install --force-reinstall --no-deps "{name}=={metadata.version("mlx")}"'
