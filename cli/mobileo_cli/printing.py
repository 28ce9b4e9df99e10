"""What the command writes: results on standard output, everything else on standard error.

Names of files, what files hold, and answers may hold anything. What controls a terminal is written as an escape that
people can read, `\\x1b`, wherever the text goes: a pipe often ends in a terminal, too. Nothing here moves a cursor or
chooses a colour.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

output_failed = False  # True once standard output could not be written, which tells its OSErrors from others

output_closed = False  # True where the caller had closed standard output

# How progress is shown, see `set_progress`.
progress_mode = "auto"
_PROGRESS_MODES = ("auto", "json", "none")

_MAX_MESSAGE = 4000  # characters

# Control characters (C0, DEL, C1), those that turn the direction of writing, and halves of surrogate pairs.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, keep: str = "\n\t") -> str:
    """Text with the characters that would control a terminal as escapes, such as `\\x1b` and `\\u202e`.

    Each is replaced on its own, so that pieces of a text may go through here one by one.

    Args:
        text: from anywhere.
        keep: those of them that stay.
    """

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        return match[0] if match[0] in keep else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _HIDDEN.sub(escape, text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that a terminal can be shown: all that is not ASCII is written as its own escapes."""
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")


def report(value: Any) -> None:
    """Writes one JSON object to standard output, for other programs; null stands for numbers that JSON does not have.

    Raises:
        OSError: as `out`.
    """
    out(json_text(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def make_streams_lenient() -> None:
    """Lets names and text that the terminal's encoding can't show pass, rather than fail on them.

    A stream that the caller has closed reads as empty, and takes what is written nowhere.
    """
    global output_closed
    output_closed = output_closed or sys.stdout is None
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
        sys.stdout.write(visible(text) + end)
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
    _message("note", text, text)


def relay_log() -> None:
    """Sends what the library logs, such as what it waits for, to `note`."""
    import logging

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(f"note: {record.getMessage()}")
            if record.exc_info and record.exc_info[1] is not None:  # a bug that a server outlives
                error = record.exc_info[1]
                show_bug(type(error), error, error.__traceback__)

    logger = logging.getLogger("mobileo_mlx")
    if not logger.handlers:
        logger.addHandler(Notes())


def failure(text: str, *, event: str = "error") -> None:
    """Writes the line that says why the command ends early.

    Args:
        text: the sentence.
        event: what it is called where messages are JSON.
    """
    _message(event, text, f"mobileo-mlx: {f'{event}: ' if event == 'error' else ''}{text}")


def interrupted(number: int) -> int:
    """Writes the line that says by which signal the command ends, and returns its exit status."""
    import signal

    failure(
        "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}", event="interrupted"
    )
    return 128 + number


def _message(event: str, text: str, line: str) -> None:
    if progress_mode == "json":
        _event(event, message=_shortened(" ".join(text.split())))
    else:
        _write_message(_shortened(visible(" ".join(line.split()))) + "\n")


def _shortened(text: str) -> str:
    """Without its middle where a message repeats something endless that was typed or read."""
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"


def _event(event: str, **fields: Any) -> None:
    _write_message(json_text({"event": event, **fields}) + "\n")


def step(done: int, total: int, label: str, **more: Any) -> bool:
    """Says as JSON, where progress is shown so, that a part is finished, and returns whether it was."""
    return happened("step", done=done, total=total, label=label, **more)


def happened(event: str, **fields: Any) -> bool:
    """Says as JSON, where progress is shown so, that something happened, and returns whether it was."""
    if progress_mode == "json":
        _event(event, **fields)
    return progress_mode == "json"


def _write_message(text: str) -> None:
    # A closed standard error must not hide the exit status.
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, whose message may be of a file's making; for `sys.excepthook`."""
    import traceback

    _write_message(visible("".join(traceback.format_exception(kind, error, trace))))


def show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Prints what a library warns of as one line; for `warnings.showwarning`."""
    note(f"warning: {message}")


def set_progress(mode: str | None) -> None:
    """Chooses how progress is shown in this process.

    Args:
        mode: "auto", a bar in terminals that can draw one over itself; "json", all of standard error is one JSON object
            a line: {"event": "step", "done": 3, "total": 20, "label": "image 1/1, seed 7"}, and events "stage" with a
            "label", "note" and "error" with a "message"; "none". None leaves it as it is.

    Raises:
        OptionError: another mode.
    """
    global progress_mode
    from mobileo_mlx.errors import OptionError

    if mode is None:
        return
    if mode not in _PROGRESS_MODES:
        raise OptionError(f"--progress {mode}: choose one of {', '.join(_PROGRESS_MODES)}.")
    progress_mode = mode


def draws_bars() -> bool:
    """Whether somebody looks at standard error in a terminal where a line can be drawn over itself."""
    return progress_mode == "auto" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


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


def count(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seconds(value: float) -> str:
    """A duration for people: `0.42 s`, `12.3 s`, `2 min 05 s`, `3 h 07 min`."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes:02d} min"


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
    rows = [[visible(cell, keep="") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(right))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


class Answer:
    """An answer that is printed as it comes, without the blanks at its two ends, as the library's `Answer.text`.

    As a context it ends the line at its end; where nothing was said and an error ends it, there is no line.

    Attributes:
        said: whether anything was printed.
    """

    def __init__(self) -> None:
        self.said = False
        self._blanks = ""  # they may be the answer's end

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (self.said or error is None) and not output_failed:
            out("")

    def add(self, text: str) -> None:
        """Prints the next piece."""
        text = self._blanks + text if self.said else text.lstrip()
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        if shown:
            out(shown, end="")
            self.said = True


class Progress:
    """A bar with the time left, drawn over itself on standard error; see `set_progress` and `draws_bars`."""

    width = 24

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._drawn = 0  # characters that are to be covered by what comes next
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Progress:
        self.say(self.label)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._draw("")

    def say(self, text: str) -> None:
        """Shows what is being done instead of a bar; "" clears the line."""
        if progress_mode == "json" and text:
            _event("stage", label=text)
        self._draw(text)

    def update(self, done: int, total: int) -> None:
        """Shows that `done` of `total` parts are finished."""
        now = time.monotonic()
        step(done, total, self.label)
        if self._first is None or done < self._first[0]:
            # The first part also loads the model: the speed is measured from its end.
            self._first = (done, now)
        parts, elapsed = done - self._first[0], now - self._first[1]
        left = f", {seconds(elapsed / parts * (total - done))} left" if parts and done < total else ""
        filled = self.width * done // total
        bar = "#" * filled + "." * (self.width - filled)
        self._draw(f"{self.label} [{bar}] {done}/{total}{left}")

    def _draw(self, text: str) -> None:
        if not draws_bars():
            return
        # A line that wraps could not be drawn over. Blanks clear it, and not an escape, which NO_COLOR may mean, too.
        text = visible(text, keep="")[: _columns() - 1]
        if text or self._drawn:
            _write_message(f"\r{text.ljust(self._drawn)}" + ("" if text else "\r"))
        self._drawn = len(text)


def _columns() -> int:
    """Of the terminal at standard error; 80 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80
