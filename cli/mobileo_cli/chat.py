"""`mobileo-mlx chat`: a conversation with images, in the terminal or through a pipe."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, printing, signals

if TYPE_CHECKING:
    from .chat_session import Session

NAME = "chat"
_HISTORY_LINES = 1000
_MAX_LINE = 2**20  # characters; more than any model's context holds
_MAX_PASSED_OVER = 16  # pieces of so many characters


@options.takes(options.answering(keep_loaded=True))
def command(**given: Any) -> None:
    """Talk about images, draw and edit them.

    /help lists the commands.
    """
    from mobileo_mlx.generation_options import AnswerOptions

    from .chat_session import HELP, Session

    given = options.resolve_preset(given)
    answering = options.given_options(AnswerOptions, given)
    keep_loaded = given["keep_loaded"] is not False
    loaded = options.load(**options.loading(given), keep_loaded=keep_loaded)
    session = Session(loaded, answering=answering, verbose=bool(given["verbose"]))
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        _enable_history()
        printing.note(f"{HELP.splitlines()[0]} /help lists all commands; Ctrl-D ends.")
    try:
        _converse(session, interactive)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if interactive and session.unsaved and not printing.output_failed:
            _offer_to_save(session, error)
        raise


def _converse(session: Session, interactive: bool) -> None:
    """Answers one line after the other, until the input or the user ends it.

    Raises:
        PromptError: standard input can't be read.
    """
    from mobileo_mlx.errors import PromptError

    while True:
        try:
            line = input("> ") if interactive else _read_line()
        except EOFError:
            if interactive:
                printing.out("")
            return
        except OSError as error:
            raise PromptError(f"standard input can't be read ({error.strerror}).") from error
        except KeyboardInterrupt as interruption:
            # At the prompt it drops the line that was being typed; a pipe has no prompt.
            if not interactive or isinstance(interruption, signals.Ended):
                raise
            printing.out("")
            printing.note("Ctrl-D or /quit ends the chat.")
            continue
        if line is None:
            printing.note(f"error: a line is longer than {_MAX_LINE:,} characters; it was passed over.")
        elif not session.handle(line):
            return


def _read_line() -> str | None:
    """The next line of a pipe; None for one that is too long, which is passed over.

    Raises:
        EOFError: there is none.
        PromptError: the line seems to have no end.
    """
    from mobileo_mlx.errors import PromptError

    line = sys.stdin.readline(_MAX_LINE)
    if not line:
        raise EOFError
    if len(line) < _MAX_LINE or line.endswith("\n"):
        return line
    for _ in range(_MAX_PASSED_OVER):
        rest = sys.stdin.readline(_MAX_LINE)
        if len(rest) < _MAX_LINE or rest.endswith("\n"):
            return None
    raise PromptError(f"a line on standard input has more than {_MAX_LINE * _MAX_PASSED_OVER:,} characters; end it.")


def _offer_to_save(session: Session, error: BaseException) -> None:
    """Asks, before an error that the chat does not survive is reported, where the conversation is to be saved."""
    printing.note(f"the chat ends with an error of the program ({type(error).__name__}), which is reported below.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while session.unsaved and (name := input("Save the conversation? FILE.md, FILE.json or nothing: ").strip()):
            session.handle(f"/save {name}")


def _enable_history() -> None:
    """Loads the lines typed in earlier chats, and saves it when the program ends."""
    try:
        import readline
    except ImportError:  # Python can be built without it, and Windows has none
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or one that can't be written
        file = _history_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        readline.set_history_length(_HISTORY_LINES)
        atexit.register(_save_history, file)
        readline.read_history_file(file)


def _history_file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(folder) / "mobileo-mlx" / "chat_history"


def _save_history(file: Path) -> None:
    import readline

    with contextlib.suppress(OSError):
        readline.write_history_file(file)
