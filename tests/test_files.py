import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobileo_mlx import files
from mobileo_mlx.atomic import check_output
from mobileo_mlx.checkpoints.adapters import Adapter
from mobileo_mlx.errors import CheckpointError, ConfigError, ImageError, OutputError
from mobileo_mlx.files import (
    JSONError,
    absolute,
    check_input,
    expand,
    is_file,
    is_folder,
    kind_of,
    open_input,
    parse_json,
    read_bytes,
    read_json,
    read_limited,
    read_text,
)


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
        (b"{", r"is not JSON \(.* at line 1, column 2\)"),
        (b"", "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text"),
        (b"[" * 100_000, "nests too deeply"),
        (b"[" * 101 + b"]" * 101, "nests too deeply"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nests too deeply"),
        (b'{"a": ' + b"7" * 5000 + b"}", "holds a number of 5000 digits"),
        (b'{"a": -' + b"7" * 301 + b"}", "holds a number of 302 digits"),
        (b'{"a": 1e999}', "holds a number that is too large, 1e999"),
        (b'{"a": NaN}', "holds NaN, which JSON does not have"),
        (b'{"a": -Infinity}', "holds -Infinity, which"),
        (rb'{"\ud800": 1}', "holds half a surrogate pair"),
        (rb'{"a": ["b", "\uDFFF"]}', "holds half a surrogate pair"),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('\ufeff{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (
            '{"model_max_length": 1000000000000000019884624838656}',
            {"model_max_length": 1000000000000000019884624838656},
        ),
        ("[" * 100 + "]" * 100, None),
        ('["' + "[" * 5000 + '"]', ["[" * 5000]),  # brackets inside of text are no depth
        ("[" + ",".join(["[]"] * 500) + "]", [[]] * 500),
        (r'["\ud83d\ude00"]', ["😀"]),
        ("[" * 100 + "1" + "]" * 100, None),
        ("1e300", 1e300),
    ],
)
def test_json_that_is_read(text, value):
    found = parse_json(text)
    assert value is None or found == value


def test_halves_of_a_pair_are_read_where_they_are_meant():
    assert parse_json(r'["\udc80"]', surrogates=True) == ["\udc80"]
    with pytest.raises(JSONError):
        parse_json(r'["\udc80"]')


def test_json_of_any_size_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"ä": 1}', encoding="utf-8")
    assert read_json(path) == {"ä": 1}
    with pytest.raises(CheckpointError, match=r"a\.json' is too large"):
        read_json(path, limit=8)


def test_kinds_of_paths(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("gone")
    kinds = {name: kind_of(tmp_path / name) for name in ("", "file", "pipe", "gone", "dangling", "file/inside")}
    assert kinds == {"": "folder", "file": "file", "pipe": "other", "gone": "", "dangling": "", "file/inside": ""}
    assert is_file(tmp_path / "file")
    assert is_folder(tmp_path)
    assert not is_file(tmp_path)


def test_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert absolute("/x/../y") == "/y"
    for use, error in ((absolute, CheckpointError), (check_output, OutputError), (Adapter.open, CheckpointError)):
        with pytest.raises(error, match=r"^'x' can't be found: the working directory was removed"):
            use("x")


def test_paths_that_the_system_says_nothing_about(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (("x" * 300, "File name too long"), ("a\0b", "null"), (tmp_path / "loop", "symbolic links")):
        with pytest.raises(ImageError, match=f"^'{re.escape(str(path))}' can't be read \\(.*{reason}.*\\).$"):
            kind_of(path, error=ImageError)


def test_a_closed_folder(tmp_path, monkeypatch):
    # The superuser may look everywhere, so the system's answer is replaced.
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(CheckpointError, match="can't be read \\(Permission denied\\)"):
        is_file("closed/file")


def test_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    expected = {"~/a": "/home/me/a", "~": "/home/me", "a/~": "a/~", "~nobody-of-this-name/a": "~nobody-of-this-name/a"}
    assert {text: str(expand(text)) for text in expected} == expected
    assert expand("~a\0b") == Path("~a\0b")


def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_input(tmp_path / "pipe", pipes=True)


def test_a_pipe_of_a_shell_is_read_where_it_may_be():
    reading, writing = os.pipe()
    os.write(writing, b"text")
    os.close(writing)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_text(f"/dev/fd/{reading}", limit=9)
    assert read_text(f"/dev/fd/{reading}", limit=9, pipes=True) == "text"
    os.close(reading)


def test_content_has_a_limit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf12345")
    assert read_bytes(path, limit=8) == path.read_bytes()
    assert read_text(path, limit=8) == "12345"
    with pytest.raises(ImageError, match=r"a\.txt' is too large for what it should hold: more than 7 bytes\.$"):
        read_bytes(path, limit=7, error=ImageError)
    with (
        Path("/dev/zero").open("rb") as endless,
        pytest.raises(CheckpointError, match=r"^Standard input is too large .* more than 1,000 bytes\.$"),
    ):
        read_limited(endless, 1000, "Standard input")
    with path.open("wb") as file:
        file.truncate(2**43)  # which takes no space on the disk, and would not fit into memory
    with pytest.raises(CheckpointError, match="is too large"):
        read_bytes(path, limit=2**42)
    path.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"is not UTF-8 text; save it as UTF-8\.$"):
        read_text(path, limit=8)


LOCKED = """
import os, sys
from mobileo_mlx.locks import lock
print(lock(os.open(sys.argv[1], os.O_RDONLY)))
"""


def test_a_lock_is_seen_by_other_processes_until_it_is_closed(tmp_path):
    from mobileo_mlx.locks import lock

    path = tmp_path / "lock"
    path.touch()

    def other() -> str:
        command = [sys.executable, "-c", LOCKED, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    descriptor = os.open(path, os.O_RDONLY)
    assert lock(descriptor) is True
    assert other() == "False"
    os.close(descriptor)
    assert other() == "True"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    import fcntl

    from mobileo_mlx.locks import lock

    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert lock(0) is None


def test_paths_name_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert files.without_home(str(tmp_path / "cache")) == f"~{os.sep}cache"
    assert files.without_home("/data/models") == "/data/models"
