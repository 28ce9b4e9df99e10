"""Commands that write, in places of their own, and what they have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobileo_mlx.atomic import TEMPORARY_PREFIX

DYING = Path(__file__).with_name("dying.py")
# Of a line of the metrics: what is the same in two runs.
_MEASURED = ("samples_per_second", "seconds", "peak_memory", "memory", "time", "elapsed", "cache_memory")


@dataclass
class Place:
    """A folder in which a command is run, again and again.

    Attributes:
        folder: the working directory; all that is written is in it.
        arguments: the command.
        environment: of the processes.
        target: the folder that the command makes, and refuses to make twice; "" where there is none.
        stdin: what is typed.
        changes: how many the last undisturbed run made; see `dying.py`.
    """

    folder: Path
    arguments: list[str]
    environment: dict[str, str]
    target: str = ""
    stdin: str = ""
    changes: int = field(default=0, init=False)

    def run(self, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """The command, undisturbed; counts its changes. `before` is called in its process."""
        done = self._process(0, 0.0, 0, before)
        self.changes = int(self._count_file.read_text())
        return done

    def strike(self, change: int, delay: float, number: int) -> int:
        """The command, which gets a signal; its status as `subprocess` has it."""
        return self._process(change, delay, number).returncode

    @property
    def _count_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.count")

    def _process(
        self, change: int, delay: float, number: int, before: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.folder.mkdir(exist_ok=True)
        head = [sys.executable, str(DYING), str(self.folder), str(change), str(delay), str(number)]
        return subprocess.run(
            [*head, str(self._count_file), *self.arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            input=self.stdin,
            preexec_fn=before,
        )

    def unfinished(self) -> list[str]:
        """What is left of what was never finished."""
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob(f"*{TEMPORARY_PREFIX}*"))

    def files(self) -> dict[str, Any]:
        """What finished files hold, without what a clock or a meter says."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.is_file() and TEMPORARY_PREFIX not in name:
                found[name] = _metrics(path) if path.name == "metrics.jsonl" else path.read_bytes()
        return found


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append({k: v for k, v in json.loads(line).items() if not any(word in k for word in _MEASURED)})
        except ValueError:  # of a killed process; cut off when the run goes on
            lines.append({"cut": line})
    return lines


def environment(folder: Path) -> dict[str, str]:
    """Of processes that find no settings of this machine, and no terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "MOBILEO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
