"""The entry point: runs a command, and turns what is raised into one sentence and an exit status.

Exit status: 0 done, 1 `doctor` found something wrong, 2 the user's mistake, 130 stopped with Ctrl-C, 141 the reader of
the output went away.
Anything else that goes wrong is a bug and shows its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import printing


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` when None.
    """
    try:
        printing.make_streams_lenient()
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        if not printing.output_failed:
            raise
        _discard_output()
        return _fail(f"error: standard output can't be written: {error.strerror}.", 2)
    except Exception as error:
        sentence = _users_mistake(error)
        if sentence is None:
            raise
        return _fail(f"error: {sentence}", 2)


def _run(arguments: list[str]) -> int:
    """Parses and runs without click's own printing of errors, which takes several lines."""
    # Imported here, so that Ctrl-C meets as little as possible that is not inside of main().
    import typer

    from .commands import NAME, program

    command = typer.main.get_command(program)
    try:
        with command.make_context(NAME, arguments) as context:
            command.invoke(context)
    except typer.Exit as exit:
        return exit.exit_code
    return 0


def _users_mistake(error: Exception) -> str | None:
    """What to tell the user; None for a bug."""
    from mobileo_mlx.errors import MobileOError

    if isinstance(error, MobileOError):
        return str(error)
    # A usage error of click, or of the one that late versions of typer carry: no class is common to both.
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    remedy = f"; see '{context.command_path} --help'." if context is not None else "."
    return error.format_message().rstrip(".") + remedy


def _fail(sentence: str, status: int) -> int:
    printing.note(f"mobileo-mlx: {sentence}")
    return status


def _discard_output() -> None:
    """Sends nowhere what is still buffered; Python would try to write it again at its end, and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
