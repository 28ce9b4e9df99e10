"""The entry point: runs a command, and turns what is raised into one sentence and an exit status.

Exit status: 0 done, 1 `doctor` found something wrong, or lines of a `batch` failed, 2 the user's mistake, 129 ended by
SIGHUP, 130 stopped with Ctrl-C, 141 the reader of the output went away, 143 ended by SIGTERM.
Anything else that goes wrong is a bug and shows its traceback.
"""

from __future__ import annotations

# Nothing else is imported here, so that Ctrl-C meets as little as possible that is not inside of main().
import os
import sys
import warnings
from collections.abc import Sequence

# How MLX begins where the folder for temporary files, in which it compiles, is missing or closed; and where the
# compiler fails there, as on a full disk.
_NO_TEMPORARY_FOLDER = "filesystem error: "
_NOT_COMPILED = "[Compile::eval_cpu] Failed to compile"
_COMPLETE = "_MOBILEO_MLX_COMPLETE"  # set by the scripts of --show-completion


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` when None.
    """
    try:
        from . import printing, signals

        printing.make_streams_lenient()
        if arguments is None:  # this is the program, and not a part of another one
            sys.excepthook = printing.show_bug
            warnings.showwarning = printing.show_warning
            signals.repeat_what_was_lost()
        with signals.raising():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption, is_program=arguments is None)
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        if not printing.output_failed:
            raise
        _discard_output()
        return _fail(f"standard output can't be written: {error.strerror}.")
    except Exception as error:
        if (lost := signals.cause_of(error)) is not None:
            return _interrupted(lost, is_program=arguments is None)
        sentence = _users_mistake(error)
        if sentence is None:
            raise
        return _fail(sentence)


def _run(arguments: list[str]) -> int:
    """Parses and runs without click's own printing of errors, which takes several lines."""
    import typer

    from .commands import NAME, program

    command = typer.main.get_command(program)
    if _COMPLETE in os.environ:  # a shell asks how a line goes on
        command._main_shell_completion(ctx_args={}, prog_name=NAME, complete_var=_COMPLETE)
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
        return _with_hint(error)
    if isinstance(error, RuntimeError) and str(error).startswith(_NO_TEMPORARY_FOLDER):
        return f"MLX can't write into the folder for temporary files ({error}); set TMPDIR to a folder of yours."
    if isinstance(error, RuntimeError) and str(error).startswith(_NOT_COMPILED):
        lines = [line.partition("error: ")[2] for line in str(error).splitlines() if "error: " in line]
        reason = f" ({lines[-1]})" if lines else ""
        return (
            f"MLX can't compile in the folder for temporary files{reason}; free space there, set TMPDIR to a folder on "
            "another disk, or do without by MLX_DISABLE_COMPILE=1, which is slower."
        )
    # A usage error of click, or of the one that late versions of typer carry: no class is common to both.
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    remedy = f"; see '{context.command_path} --help'." if context is not None else "."
    return error.format_message().rstrip(".") + remedy


def _with_hint(error: Exception) -> str:
    """The sentence of an error; where the model that is taken by default can't be downloaded, with the way out."""
    from mobileo_mlx.errors import DownloadError

    from .options import DEFAULT_MODEL

    sentence = str(error)
    if isinstance(error, DownloadError) and DEFAULT_MODEL in sentence:
        return f"{sentence.rstrip('.')}; or try the small model that needs no download: --model tiny."
    return sentence


def _interrupted(interruption: KeyboardInterrupt, *, is_program: bool) -> int:
    import signal

    from . import printing, signals

    if is_program:
        signals.end_at_once()
    return printing.interrupted(getattr(interruption, "number", signal.SIGINT))


def _fail(sentence: str) -> int:
    from . import printing

    printing.failure(sentence)
    return 2


def _discard_output() -> None:
    """Sends nowhere what is still buffered; Python would try to write it again at its end, and complain."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
