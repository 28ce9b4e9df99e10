"""`mobileo-mlx chat`: a conversation with images, in the terminal or through a pipe."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from . import options, printing

NAME = "chat"
_HISTORY_LINES = 1000


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
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                printing.out("")
            return
        except KeyboardInterrupt:
            # At the prompt it drops the line that was being typed; a pipe has no prompt.
            if not interactive:
                raise
            printing.out("")
            printing.note("Ctrl-D or /quit ends the chat.")
            continue
        if not session.handle(line):
            return


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
