"""The lines typed in earlier chats, through readline; without it or its file there is no history."""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path

LINES = 1000


def enable() -> None:
    """Loads the history, and saves it when the program ends."""
    try:
        import readline
    except ImportError:  # Python can be built without it, and Windows has none
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or one that can't be written
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        readline.set_history_length(LINES)
        atexit.register(_save, file)
        readline.read_history_file(file)


def _file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(folder) / "mobileo-mlx" / "chat_history"


def _save(file: Path) -> None:
    import readline

    with contextlib.suppress(OSError):
        readline.write_history_file(file)
