"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START = 120  # seconds in which it has to say its address


class Server:
    """`mobileo-mlx serve`, as a context: it listens when it is entered, and has ended when it is left.

    Attributes:
        port: of 127.0.0.1; the system chose it where 0 was asked for.
        output: the lines that it wrote.
    """

    def __init__(self, pictures: Path, *, model: str = "tiny", port: int = 0, options: Sequence[str] = ()):
        self.port, self.output = port, list[str]()
        command = ["serve", "--model", model, "--port", str(port), "--pictures", str(pictures), *options]
        self._command = [sys.executable, "-m", "mobileo_mlx", *command]
        self._listening = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Server:
        # A group of its own: Ctrl-C in the terminal is for the benchmark, which then ends it.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(START) or not self.port:
            self.stop()
            raise RuntimeError(f"{' '.join(self._command)} does not listen:\n" + "\n".join(self.output))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Ends it as SIGTERM does, and gives its exit status; SIGKILL where that takes more than half a minute."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reader.join(5)
        return self._process.wait()

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self._process.kill()
        self._process.wait()

    def resident_memory(self) -> int:
        """Bytes that the process has in memory."""
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True)
        return int(shown.stdout or 0) * 1024

    def open_files(self) -> int | None:
        """How many files and connections it has open; None where the system does not say."""
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line.rstrip())
            if not self._listening.is_set() and (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)):
                self.port = int(found[1])
                self._listening.set()
        self._listening.set()  # it ended
