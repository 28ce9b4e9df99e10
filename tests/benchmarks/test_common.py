from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import common


@pytest.mark.skipif(common.machine()["blas"] != "OpenBLAS", reason="there is no OpenBLAS here")
def test_one_thread_holds_for_a_blas_that_is_loaded_already() -> None:
    code = (
        "import ctypes, benchmarks\nfrom benchmarks import common\ncommon.one_thread()\n"
        "print(ctypes.CDLL('libopenblas.so.0').openblas_get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"


def test_a_table_is_aligned() -> None:
    rows = [("tower", "rect", "1.5"), ("connector", "a", "12")]
    assert list(common.markdown_table(("part", "case", "error"), rows, names=2)) == [
        "| part      | case | error |",
        "| --------- | ---- | ----: |",
        "| tower     | rect |   1.5 |",
        "| connector | a    |    12 |",
    ]
    first_alone = list(common.markdown_table(("part", "case"), [("x", "y")]))
    assert first_alone == ["| part | case |", "| ---- | ---: |", "| x    |    y |"]
