"""A disk that fills up, at any point of what a command writes: one sentence, and all that was there is untouched."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from .places import Place

SHARES = (0.0, 0.2, 0.6, 0.95)  # of what a command needs
PAGE = 4096
OLD = b"what was there before"
FILLER = ".filler"

Disk = Callable[[int, Mapping[str, bytes]], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a file system with so many bytes of space beside old files and what fills it."""
    mounted: list[Path] = []

    def mount(space: int, old: Mapping[str, bytes]) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            folder.rmdir()
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        for name, content in old.items():
            (folder / name).write_bytes(content)
        with (folder / FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (os.statvfs(folder).f_bavail - space // PAGE) * PAGE)
        assert os.statvfs(folder).f_bavail == space // PAGE
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "edit", "convert", "fuse", "random-model", "chat"])
def test_full(place: Callable[..., Place], disk: Disk, command: str) -> None:
    expected = place(command)
    assert (done := expected.run()).returncode == 0, done.stderr
    whole = expected.files()
    for share in SHARES:
        here = place(command, disk(int(share * size_of(expected.folder)), {"old": OLD}))
        done = here.run()
        sentences = [line for line in done.stderr.splitlines() if "error: " in line]
        assert "Traceback" not in done.stderr
        assert len(sentences) == 1, done.stderr
        assert "the disk is full" in sentences[0]
        assert done.returncode == (0 if command == "chat" else 2)  # a chat goes on
        found = here.files()
        assert found.pop(FILLER)
        assert found.pop("old") == OLD
        assert found.items() <= whole.items()
        assert not here.target or not found
        assert here.unfinished() == []


@pytest.mark.slow
def test_full_while_files_are_replaced(place: Callable[..., Place], disk: Disk) -> None:
    expected = place("generate")
    assert expected.run().returncode == 0
    whole = expected.files()
    old = {name: OLD for name in whole if "/" not in name}
    statuses = []
    for share in SHARES:
        here = place("generate", disk(int(share * size_of(expected.folder)), old))
        statuses.append(here.run().returncode)
        found = here.files()
        assert {name: found[name] in (OLD, whole[name]) for name in old} == dict.fromkeys(old, True)
    assert statuses[0] == 2
    assert set(statuses) <= {0, 2}  # the old files give their space back


@pytest.mark.slow
def test_training_goes_on_once_there_is_space(place: Callable[..., Place], disk: Disk) -> None:
    expected = place("finetune")
    assert (done := expected.run()).returncode == 0, done.stderr
    whole = expected.files()
    for share in SHARES:
        here = place("finetune", disk(int(share * size_of(expected.folder)), {}))
        done = here.run()
        assert done.returncode == 2, done.stderr
        assert any(words in done.stderr.splitlines()[-1] for words in ("disk is full", "No space left on device"))
        assert "Traceback" not in done.stderr
        assert here.unfinished() == []
        (here.folder / FILLER).unlink()
        assert (done := here.run()).returncode == 0, done.stderr
        assert here.files() == whole


@pytest.mark.parametrize("command", ["generate", "edit", "convert", "fuse", "random-model", "finetune"])
def test_files_that_may_not_grow(place: Callable[..., Place], command: str) -> None:
    """The same where nothing can be mounted: the system refuses what is beyond a size."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    # Once without a limit: MLX compiles kernels into files too, and keeps them.
    assert (done := place(command).run()).returncode == 0, done.stderr
    here = place(command)
    done = here.run(before=limit)
    assert done.returncode == 2, done.stderr
    assert "can't be written (File too large)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(here.folder / "new")  # a training's folder stays
    assert here.files() == {}
    assert here.unfinished() == []


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="MLX compiles with g++ on Linux")
def test_kernels_that_may_not_grow(place: Callable[..., Place], tmp_path: Path) -> None:
    here = place("finetune")
    here.environment["TMPDIR"] = str(tmp_path)  # without the kernels of earlier runs

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # enough for a kernel's source, not for what is made

    done = here.run(before=limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "MLX can't compile in the folder for temporary files (" in done.stderr.splitlines()[-1]
    assert here.run().returncode == 0


def size_of(folder: Path) -> int:
    """What a folder takes, in whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())
