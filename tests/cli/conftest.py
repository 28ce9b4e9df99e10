from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

COMMAND = Path(sysconfig.get_path("scripts")) / "mobileo-mlx"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has no model cached and reaches no hub."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, **hub, **state, "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder, where the command is run."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def command(environment: dict[str, str], work: Path) -> Run:
    """Runs the installed command in a process of its own."""

    def run(*arguments: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=work,
            env={**environment, **env},
            timeout=120,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def refused(command: Run, work: Path) -> Callable[..., str]:
    """Runs the installed command, and asserts that it refuses as it should: with status 2, one sentence, no files.

    Returns the sentence.
    """

    def run(*arguments: object, **options: object) -> str:
        before = _tree(work)
        done = command(*arguments, **options)
        assert done.returncode == 2, (done.stdout, done.stderr)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("mobileo-mlx: error: ")
        assert done.stderr.rstrip().endswith((".", "?'"))
        assert _tree(work) == before
        return done.stderr

    return run


def _tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command in this process, in an empty folder: quicker, for what needs no process of its own."""
    from mobileo_cli.main import main

    monkeypatch.chdir(work)

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture whose four quarters differ, so that its orientation shows."""
    image = Image.new("RGB", (96, 64), "white")
    image.paste((200, 30, 30), (0, 0, 48, 32))
    image.paste((30, 160, 60), (48, 0, 96, 32))
    image.paste((40, 60, 200), (0, 32, 48, 64))
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    image.save(path)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of 64 kB that is "full" or "read-only"."""
    mounted: list[Path] = []

    def mount(state: str) -> Path:
        folder = tmp_path / state
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        if state == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 1024):
                    pass
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
