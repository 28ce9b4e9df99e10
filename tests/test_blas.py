"""Which BLAS MLX finds on Linux. Each case is a process of its own: what is loaded once stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Mac has Accelerate")

HAS_OPENBLAS = subprocess.run([sys.executable, "-c", "import ctypes; ctypes.CDLL('libopenblas.so.0')"]).returncode == 0
needs_openblas = pytest.mark.skipif(not HAS_OPENBLAS, reason="OpenBLAS is not installed")

# Whatever this machine has, the process finds nothing.
NONE = "from mobileo_mlx import blas; blas.OPENBLAS = blas._MKL = 'no-such-library'; "


def python(source: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MOBILEO_QUIET")}
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, env={**environment, **env}
    )
    assert done.returncode == 0, done.stderr
    return done


def printed(source: str, **env: str) -> str:
    return python(source, **env).stdout.strip()


def test_importing_the_package_loads_nothing() -> None:
    source = "import sys, mobileo_mlx; from mobileo_mlx import blas; print(repr(blas.loaded()), 'mlx' in sys.modules)"
    assert printed(source) == "'' False"


def test_without_a_fast_blas_the_program_hears_of_it() -> None:
    assert printed(NONE + "print(blas.preload(), repr(blas.loaded()))") == "False ''"


@needs_openblas
def test_openblas_is_found() -> None:
    source = "from mobileo_mlx import blas; print(blas.preload(), blas.loaded(), blas.preload())"
    assert printed(source) == "True OpenBLAS True"


@needs_openblas
def test_it_is_found_only_before_mlx_is_imported() -> None:
    assert printed("import mlx.core; from mobileo_mlx import blas; print(blas.preload())") == "False"


@needs_openblas
def test_one_that_was_loaded_otherwise_counts() -> None:
    assert printed(NONE + "print(blas.preload(), blas.loaded())", LD_PRELOAD="libopenblas.so.0") == "True OpenBLAS"


@needs_openblas
def test_the_one_of_the_environment_is_found(tmp_path: Path) -> None:
    """What pip installs lies in the environment's lib; here OpenBLAS takes the part of MKL."""
    path = printed(
        "import ctypes; ctypes.CDLL('libopenblas.so.0');"
        "print(next(l.split()[-1] for l in open('/proc/self/maps') if 'libopenblas' in l))"
    )
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmkl_rt.so.1").write_text("for another machine")
    (tmp_path / "lib" / "libmkl_rt.so.2").symlink_to(path)
    source = "import sys; from mobileo_mlx import blas; blas.OPENBLAS = 'none'; sys.prefix = sys.argv[1];"
    assert python(source + "print(blas.preload())", str(tmp_path)).stdout.strip() == "True"


COMMAND = NONE + "import sys; from mobileo_cli.main import main; sys.exit(main())"


def test_a_command_that_computes_says_once_that_the_blas_is_slow(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "a cat", "--model", str(tiny_model), "--steps", "1", "--output", str(tmp_path / "a.png")]
    notes = python(COMMAND, *arguments).stderr.splitlines()
    (note,) = (line for line in notes if "BLAS" in line)
    assert note.startswith("mobileo-mlx: no fast BLAS was found")
    assert "libopenblas0-pthread" in note
    arguments[-1] = str(tmp_path / "b.png")
    assert "BLAS" not in python(COMMAND, *arguments, MOBILEO_QUIET="1").stderr
    assert "BLAS" not in python(COMMAND, "info", str(tiny_model)).stderr


@needs_openblas
def test_a_command_with_a_fast_blas_says_nothing(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["generate", "a cat", "--model", str(tiny_model), "--steps", "1", "--output", str(tmp_path / "a.png")]
    assert "BLAS" not in python("import sys; from mobileo_cli.main import main; sys.exit(main())", *arguments).stderr
