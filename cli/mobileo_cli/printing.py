"""What the command writes: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

output_failed = False  # True once standard output could not be written; main() tells it from other OSErrors


def make_streams_lenient() -> None:
    """Lets names and text that the terminal's encoding can't show pass, rather than fail on them.

    A stream that the caller has closed reads as empty, and takes what is written nowhere.
    """
    # They stay open until the program ends.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def out(text: str, end: str = "\n") -> None:
    """Writes to standard output at once, so that a reader sees tokens and paths as they come.

    Raises:
        OSError: standard output is closed, or its disk is full; `output_failed` is set.
    """
    global output_failed
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except OSError:
        output_failed = True
        raise


def out_bytes(data: bytes) -> None:
    """Writes a file to standard output, as `out` does a text."""
    global output_failed
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    except OSError:
        output_failed = True
        raise


def note(text: str) -> None:
    """Writes one line to standard error; line breaks inside of `text` (a file's odd name) become spaces."""
    # A closed standard error must not hide the exit status.
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


@functools.cache  # once in a process
def note_slow_blas() -> None:
    """Says so if this process computes on a CPU with the slow BLAS of MLX's wheel; not where MOBILEO_QUIET is set.

    For commands that compute, just before they do.
    """
    from mobileo_mlx import blas
    from mobileo_mlx.ops import backend

    if not (blas.loaded() or not backend.on_cpu() or os.environ.get("MOBILEO_QUIET")):
        note(
            "mobileo-mlx: no fast BLAS was found, so this takes many times as long as it could: install OpenBLAS "
            "(Debian, Ubuntu: libopenblas0-pthread), or on x86-64 `pip install mkl`; MOBILEO_QUIET=1 hides this note."
        )


@functools.cache
def note_hidden_cuda() -> None:
    """Says so if this process computes on a CPU because that library of MLX's took the place of CUDA's.

    As `note_slow_blas`.
    """
    from mobileo_mlx import mlx_library
    from mobileo_mlx.ops import backend

    if backend.on_cpu() and not os.environ.get("MOBILEO_QUIET") and (command := mlx_library.hidden_cuda()):
        note(
            "mobileo-mlx: MLX's package for CUDA is installed, but the library of mlx-cpu took its place, so this "
            f"computes on the CPU: run `{command}`; MOBILEO_QUIET=1 hides this note."
        )


def seconds(value: float) -> str:
    """A duration for people: `0.42 s`, `12.3 s`, `2 min 05 s`."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def size(count: int) -> str:
    """A number of bytes for people, in powers of 1000: `812 B`, `4.1 kB`, `3.33 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def details(timings: Mapping[str, float], peak_memory: int, cache_memory: int) -> None:
    """The lines that `--verbose` adds: seconds per phase, peak memory, and where there is one MLX's cache, in bytes."""
    cache = f" and {size(cache_memory)} in MLX's cache" if cache_memory else ""
    stages = ", ".join(f"{name} {seconds(value)}" for name, value in timings.items())
    note(f"{stages}; peak memory {size(peak_memory)}{cache}")


def table(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Columns with a rule below the first row; `right` says which ones are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


class Progress:
    """A bar with the time left, drawn over itself on standard error; silent where that is no terminal."""

    width = 24

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._shown = sys.stderr.isatty()
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Progress:
        self._draw(self.label)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._draw("")

    def say(self, text: str) -> None:
        """Shows what is being done instead of a bar."""
        self._draw(text)

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` parts are finished."""
        now = time.monotonic()
        if self._first is None or done < self._first[0]:
            # The first part also loads the model: the speed is measured from its end.
            self._first = (done, now)
        parts, elapsed = done - self._first[0], now - self._first[1]
        left = f", {seconds(elapsed / parts * (total - done))} left" if parts and done < total else ""
        filled = self.width * done // total
        bar = "#" * filled + "." * (self.width - filled)
        self._draw(f"{self.label} [{bar}] {done}/{total}{left}")

    def _draw(self, text: str) -> None:
        if self._shown:
            with contextlib.suppress(OSError):
                # Back to the line's start, and clear it to its end. A line that wraps could not be drawn over.
                sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
                sys.stderr.flush()
