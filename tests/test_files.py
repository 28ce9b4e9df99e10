import errno
import os
from pathlib import Path

import pytest

from mobileo_mlx import files
from mobileo_mlx.errors import CheckpointError, ConfigError, OutputError
from mobileo_mlx.files import (
    atomic_folder,
    atomic_write,
    check_input,
    check_output,
    check_output_folder,
    read_json,
)

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


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"), atomic_write(tmp_path / "a.txt"):
        pass


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


def test_a_file_to_read_is_a_regular_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert check_input(path) == 2
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        for read in (check_input, read_json):
            with pytest.raises(CheckpointError, match=f"'{odd}' is not a regular file"):
                read(odd)
    for missing in (tmp_path / "gone", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=f"'{missing}' can't be read"):
            check_input(missing, error=ConfigError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.json' {message}.*; download it again\.$"):
        read_json(path)
    with pytest.raises(ConfigError, match=r"; write it anew\.$"):
        read_json(path, error=ConfigError, remedy="write it anew")


def test_json_of_any_size_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"ä": 1}', encoding="utf-8")
    assert read_json(path) == {"ä": 1}
    monkeypatch.setattr(files, "_MAX_JSON", 8)
    with pytest.raises(CheckpointError, match=r"a\.json' is too large"):
        read_json(path)


def test_paths_name_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert files.without_home(str(tmp_path / "cache")) == f"~{os.sep}cache"
    assert files.without_home("/data/models") == "/data/models"
