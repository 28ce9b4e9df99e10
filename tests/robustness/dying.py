"""Runs the command in a process that sends itself a signal while it changes files.

    python dying.py FOLDER CHANGE DELAY SIGNAL COUNT_FILE COMMAND...

The signal comes DELAY seconds after the CHANGE-th time that something in FOLDER is opened for writing, renamed, linked,
removed or made. With CHANGE 0 none comes, and COUNT_FILE says how many such changes there were.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> int:
    folder, change, delay, number = os.path.abspath(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    count_file, arguments = Path(sys.argv[5]), sys.argv[6:]
    count = 0

    def inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return (os.path.abspath(os.fsdecode(path)) + os.sep).startswith(folder + os.sep)

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = values
            changes = bool((flags or 0) & _WRITING) or (mode is not None and set(mode) & set("wax+"))
        else:
            path, changes = values[0] if values else None, event in _CHANGES
        if changes and inside(path):
            count += 1
            if count == change:
                threading.Thread(target=strike, daemon=True).start()

    def strike() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), number)

    sys.addaudithook(watch)
    from mobileo_cli.main import main as command

    status = command(arguments)
    if change == 0:
        count_file.write_text(str(count))
    return status


if __name__ == "__main__":
    sys.exit(main())
