"""What the command reads: prompts and images, from arguments, files, or standard input (`-`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

STDIN = "-"
MAX_TEXT = 2**20  # bytes; what fits into the context of a model has some hundred thousand


def read_text(argument: str | None, file: Path | None, *, name: str) -> str | None:
    """The text of a prompt or instruction, from exactly one source; None when there is none.

    Args:
        argument: the text itself, or `-` for standard input.
        file: a UTF-8 text file.
        name: what the argument is called, for the messages.

    Raises:
        OptionError: both are given.
        PromptError: the file can't be read, or is not UTF-8 text.
    """
    from mobileo_mlx.errors import OptionError, PromptError
    from mobileo_mlx.files import expand, read_limited
    from mobileo_mlx.files import read_text as read_file

    if argument is not None and file is not None:
        raise OptionError(f"give either {name} or --prompt-file, not both.")
    if file is not None:
        return read_file(expand(file), limit=MAX_TEXT, error=PromptError, pipes=True).strip()
    if argument != STDIN:
        return argument
    data = read_limited(sys.stdin.buffer, MAX_TEXT, "The text on standard input", error=PromptError)
    try:
        return data.decode("utf-8-sig").strip()  # what Windows writes may begin with a byte order mark
    except UnicodeDecodeError:
        raise PromptError("The text on standard input is not UTF-8 text; write it in UTF-8.") from None


def read_image(argument: str) -> Image:
    """The image of a file, or from standard input for `-`.

    Raises:
        ImageError: see the library's `load_image`.
    """
    from mobileo_mlx.images import load_image

    with _quiet_libraries():
        if argument == STDIN:
            return load_image(sys.stdin.buffer, name="the image on standard input")
        return load_image(argument)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps from standard error what libtiff writes there of damaged files; the one sentence that counts is ours."""
    try:
        sys.stderr.flush()
        shown = os.dup(2)
    except (OSError, ValueError):  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
