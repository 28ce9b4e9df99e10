"""What the command reads: prompts and images, from arguments, files, or standard input (`-`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

STDIN = "-"


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

    if argument is not None and file is not None:
        raise OptionError(f"give either {name} or --prompt-file, not both.")
    if file is not None:
        source = str(file)
        try:
            data = file.expanduser().read_bytes()
        except OSError as error:
            raise PromptError(f"{file}: {error.strerror}; check the name of the prompt file.") from None
    elif argument == STDIN:
        source, data = "standard input", sys.stdin.buffer.read()
    else:
        return argument
    try:
        return data.decode("utf-8-sig").strip()  # files written on Windows may begin with a byte order mark
    except UnicodeDecodeError:
        raise PromptError(f"{source}: not UTF-8 text; write it in UTF-8.") from None


def read_image(argument: str) -> Image:
    """The image of a file, or from standard input for `-`.

    Raises:
        ImageError: see the library's `load_image`.
    """
    from mobileo_mlx.images import load_image

    if argument == STDIN:
        return load_image(sys.stdin.buffer.read(), name="the image on standard input")
    return load_image(argument)
