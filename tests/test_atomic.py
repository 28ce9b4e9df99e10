import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mobileo_mlx import atomic
from mobileo_mlx.atomic import (
    TEMPORARY_PREFIX,
    atomic_folder,
    atomic_write,
    check_output,
    check_output_folder,
    remove_unfinished,
)
from mobileo_mlx.errors import ExistsError, OutputError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_and_raise(target: Path, error: BaseException) -> None:
    with atomic_write(target, overwrite=True) as temporary:
        temporary.write_text("half")
        raise error


def write_folder_and_raise(target: Path, error: BaseException) -> None:
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "half").write_text("x")
        raise error


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_at_the_end(tmp_path):
    target = tmp_path / "model.safetensors"
    with atomic_write(target) as temporary:
        # mlx appends the suffix when it is missing, so the temporary name must have it.
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert listing(tmp_path) == ["model.safetensors"]


def test_a_file_is_not_overwritten_silently(tmp_path):
    target = tmp_path / "a.png"
    target.write_text("old")
    with (
        pytest.raises(OutputError, match=r"a\.png' exists already; choose another name"),
        atomic_write(target),
    ):
        pytest.fail("the body must not run")
    with atomic_write(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_name_taken_meanwhile_is_kept(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="exists already"), atomic_write(target):
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), GeneratorExit()])
def test_any_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)):
        write_and_raise(target, error)
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "quota"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named(tmp_path, error):
    with pytest.raises(OutputError, match=r"a\.txt' can't be written: the disk is full; free some space"):
        write_and_raise(tmp_path / "a.txt", error)
    assert listing(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, others do not")
def test_a_write_that_really_finds_no_space(tmp_path):
    with pytest.raises(OutputError, match="the disk is full"), atomic_write(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x")
    assert listing(tmp_path) == []


def test_a_write_that_fails_otherwise_gives_the_reason(tmp_path):
    with (
        pytest.raises(OutputError, match=r"a\.txt' can't be written \(File too large\)"),
        atomic_write(tmp_path / "a.txt") as temporary,
    ):
        raise OSError(errno.EFBIG, "File too large", str(temporary))


def test_an_error_while_reading_something_else_is_not_called_a_write_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "source").read_text()
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert listing(tmp_path) == []


def test_targets_that_can_not_be_files(tmp_path):
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match=r"there is no folder '.*missing'; make it first"):
        check_output(tmp_path / "missing" / "a.txt")
    with pytest.raises(OutputError, match="not a regular file"):
        check_output("/dev/null", overwrite=True)
    assert check_output(tmp_path / "a.txt") == (tmp_path / "a.txt").resolve()


def test_an_unwritable_folder(tmp_path, monkeypatch):
    # The superuser may write anywhere, so the system's answer is replaced.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=r"a\.txt' can't be written: the folder '.*' is not writable"):
        check_output(tmp_path / "a.txt")
    with pytest.raises(OutputError, match="is not writable; choose another folder"):
        check_output_folder(tmp_path / "a")


def test_a_name_that_is_too_long_is_told_early():
    with pytest.raises(OutputError, match=r"can't be written \(File name too long\)"):
        check_output("a" * 300 + ".png")


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_write(tmp_path / "link.txt", overwrite=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "config.json").write_text("{}")
        assert not target.exists()
    assert listing(tmp_path) == ["model"]
    assert listing(target) == ["config.json"]


def test_an_empty_folder_may_be_taken(tmp_path):
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("{}")
    assert listing(tmp_path / "model") == ["config.json"]


def test_folders_that_can_not_be_taken(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; choose another name for the folder"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="exists already and is not empty"), atomic_folder(tmp_path):
        pytest.fail("the body must not run")
    with pytest.raises(OutputError, match="there is no folder"):
        check_output_folder(tmp_path / "missing" / "model")


@pytest.mark.parametrize(("error", "kind"), [(KeyboardInterrupt(), KeyboardInterrupt), (FULL, OutputError)])
def test_a_failure_removes_the_whole_temporary_folder(tmp_path, error, kind):
    with pytest.raises(kind):
        write_folder_and_raise(tmp_path / "model", error)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("linked", [True, False])
def test_a_name_that_is_taken_can_be_told_from_other_failures(tmp_path, monkeypatch, linked):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not linked:  # as on exFAT
        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "a.txt"
    with pytest.raises(ExistsError, match="exists already"), atomic_write(target):
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    with atomic_write(tmp_path / "b.txt") as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "b.txt").read_text() == "ours"
    with pytest.raises(ExistsError, match="is not empty"), atomic_folder(tmp_path / "c"):
        (tmp_path / "c" / "theirs").mkdir(parents=True)
    assert listing(tmp_path) == ["a.txt", "b.txt", "c"]


def test_permissions(tmp_path):
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    def write(name: str) -> None:
        with atomic_write(tmp_path / name, overwrite=True) as temporary:
            temporary.write_text("x")
            temporary.chmod(0o644)  # as writers in native code do

    before = os.umask(0o007)
    try:
        write("new")
        (tmp_path / "private").touch(0o600)
        write("private")
    finally:
        os.umask(before)
    assert (mode("new"), mode("private")) == (0o660, 0o600)


def test_what_is_renamed_was_flushed(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not say which file a descriptor is of")
    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "a.txt") as temporary:
        name = temporary.name
    assert flushed == [name, tmp_path.name]
    flushed.clear()
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
    assert flushed == ["weights", temporary.name, tmp_path.name]


def test_a_disk_that_is_found_full_when_it_is_flushed(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert listing(tmp_path) == []


KILLED = """
import os, signal, sys
from mobileo_mlx.atomic import atomic_folder, atomic_write
with atomic_write(sys.argv[1] + "/a.txt") as file, atomic_folder(sys.argv[1] + "/a") as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(listing(tmp_path)) == 2
    with atomic_write(tmp_path / "b.txt") as living:
        assert listing(tmp_path) == [living.name]
        remove_unfinished(tmp_path)  # which spares what somebody is writing
        assert listing(tmp_path) == [living.name]
    assert listing(tmp_path) == ["b.txt"]


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    (tmp_path / f"{TEMPORARY_PREFIX}abc").mkdir()
    monkeypatch.setattr(atomic, "lock", lambda *_: None)
    with atomic_write(tmp_path / "b.txt") as temporary:
        temporary.write_text("x")
    assert listing(tmp_path) == [f"{TEMPORARY_PREFIX}abc", "b.txt"]


def test_the_users_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output("~/a.txt") == (tmp_path / "a.txt").resolve()
    assert check_output_folder("~/a") == (tmp_path / "a").resolve()


def test_names_that_hold_a_nul():
    for check in (check_output, check_output_folder):
        with pytest.raises(OutputError, match="null"):
            check("a\0b")


@pytest.mark.parametrize("write", [lambda path: atomic_write(path), lambda path: atomic_folder(path)])
def test_an_interruption_before_anything_is_written(tmp_path, monkeypatch, write):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "lock", interrupt)
    with pytest.raises(KeyboardInterrupt), write(tmp_path / "new.x"):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [lambda path: atomic_write(path), lambda path: atomic_folder(path)])
def test_a_folder_in_which_nothing_can_be_made(tmp_path, monkeypatch, write):
    """As /proc, which answers that there is no such file."""

    def refuse(path, *arguments, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    for name in ("mkdir", "open"):
        monkeypatch.setattr(os, name, refuse)
    with (
        pytest.raises(OutputError, match=r"new\.x' can't be written \(No such file or directory\)"),
        write(tmp_path / "new.x"),
    ):
        pass
