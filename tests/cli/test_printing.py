from __future__ import annotations

import io
import itertools
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from mobileo_cli import printing

from mobileo_mlx.errors import OptionError

from .conftest import COMMAND, Run


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.4239, "0.42 s"),
        (9.87, "9.87 s"),
        (12.34, "12.3 s"),
        (125.2, "2 min 05 s"),
        (3599.9, "60 min 00 s"),
        (11209, "3 h 07 min"),
    ],
)
def test_seconds(value: float, expected: str) -> None:
    assert printing.seconds(value) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (4_120_000, "4.12 MB"), (3.33e9, "3.33 GB")],
)
def test_size(count: int, expected: str) -> None:
    assert printing.size(count) == expected


def test_table() -> None:
    rows = [("name", "size"), ("dit", "12 kB"), ("mm_projector", "1 B")]
    assert printing.table(rows, right=(False, True)).splitlines() == [
        "name           size",
        "------------  -----",
        "dit           12 kB",
        "mm_projector    1 B",
    ]


def test_notes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    printing.note("'a\nb.png' is damaged.")
    assert capsys.readouterr().err == "'a b.png' is damaged.\n"


def test_endless_messages_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    printing.failure(f"--seed {'9' * 1_000_000}: choose a smaller number.")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mobileo-mlx: error: --seed 999")
    assert line.endswith("999: choose a smaller number.")
    assert len(line) == 4005
    printing.note("a" * 4000)
    assert capsys.readouterr().err == "a" * 4000 + "\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def become_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard error a terminal. Not a fixture: pytest changes the stream after them."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    return terminal


def test_progress_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    times = iter([100.0, 103.0, 106.0])
    monkeypatch.setattr(printing.time, "monotonic", lambda: next(times))
    with printing.Progress("seed 7") as progress:
        for step in (1, 2, 3):
            progress.update(step, 3)
    drawn = terminal.getvalue().split("\r")[1:]
    assert [text.rstrip() for text in drawn] == [
        "seed 7",
        "seed 7 [########................] 1/3",  # the first step also loads the model
        "seed 7 [################........] 2/3, 3.00 s left",
        "seed 7 [########################] 3/3",
        "",
        "",
    ]
    # Blanks cover what was there before.
    assert all(len(after) >= len(before.rstrip()) for before, after in itertools.pairwise(drawn))


def test_a_line_that_would_wrap_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    with printing.Progress("a\nb\x1b" + "c" * 1000):
        pass
    assert terminal.getvalue().startswith("\ra\\x0ab\\x1bccc")
    assert all(len(text) < 80 for text in terminal.getvalue().split("\r"))


def test_a_dumb_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert not printing.draws_bars()
    with printing.Progress("seed 7") as progress:
        progress.update(1, 2)
    assert terminal.getvalue() == ""


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of progress is as before after the test."""
    monkeypatch.setattr(printing, "progress_mode", "auto")


def test_progress_as_json(mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    printing.set_progress("json")
    assert not printing.draws_bars()
    with printing.Progress("seed 7") as progress:
        progress.say("loading")
        progress.update(1, 2)
    printing.note("'a\nb'\x1b is fine")
    printing.failure("no model.")
    assert [json.loads(line) for line in terminal.getvalue().splitlines()] == [
        {"event": "stage", "label": "seed 7"},
        {"event": "stage", "label": "loading"},
        {"event": "step", "done": 1, "total": 2, "label": "seed 7"},
        {"event": "note", "message": "'a b'\x1b is fine"},
        {"event": "error", "message": "no model."},
    ]
    assert "\x1b" not in terminal.getvalue()


def test_modes_of_progress(mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become_terminal(monkeypatch)
    printing.set_progress(None)
    assert printing.draws_bars()
    printing.set_progress("none")
    with printing.Progress("seed 7") as progress:
        progress.update(1, 2)
    assert terminal.getvalue() == ""
    with pytest.raises(OptionError, match="--progress tsv: choose one of auto, json, none"):
        printing.set_progress("tsv")


CONTROLS = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


def test_what_would_control_a_terminal_is_shown() -> None:
    assert printing.visible("a\x1b]52;c;aGk=\x07b\x9b1m\u202e\udc80\x7f\r") == (
        "a\\x1b]52;c;aGk=\\x07b\\x9b1m\\u202e\\udc80\\x7f\\x0d"
    )
    plain = "a\n\tß 日本 🐱\u200d👓 \u200f\xa0"
    assert printing.visible(plain) == plain
    assert printing.visible(plain, keep="").startswith(r"a\x0a\x09ß")
    for character in CONTROLS:
        assert (printing.visible(character) == character) == (character in "\n\t")
        assert printing.visible(character, keep="").isprintable()


def test_nothing_that_is_written_controls_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "".join(CONTROLS) + "\ud800"
    printing.out(odd)
    printing.note(odd)
    printing.failure(odd)
    printing.out(printing.table([(odd, "b"), ("c", odd)], right=(False, True)))
    printing.out(printing.json_text({odd: odd}))
    captured = capsys.readouterr()
    assert not {*captured.out, *captured.err} & ({*CONTROLS, "\ud800"} - {"\n", "\t"})
    assert json.loads(captured.out.splitlines()[-1]) == {odd: odd}
    rule = printing.table([("a\x1b", "b"), ("c", "d")], right=(False, False)).splitlines()[1]
    assert rule == "-----  -"


def test_a_traceback_does_not_either(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError as error:
        printing.show_bug(type(error), error, error.__traceback__)
    assert capsys.readouterr().err.endswith("ValueError: \\x1b]0;title\\x07\n")


def test_a_warning_does_not_either(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", printing.show_warning)
        warnings.warn("a\x1b[31m\nb", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: a\\x1b[31m b\n"


def in_terminal(*arguments: object, cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    """The exit status of the command, and all that a terminal was sent by it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(COMMAND), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=cwd, env=env
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # how Linux says that the other side was closed
        pass
    os.close(master)
    return process.wait(timeout=60), shown.decode()


@pytest.mark.parametrize(
    ("settings", "bar"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, True)],
)
def test_drawing_in_a_terminal(
    settings: dict[str, str], bar: bool, tiny_model: Path, work: Path, environment: dict[str, str]
) -> None:
    arguments = ["generate", "a cat", "-m", tiny_model, "--steps", 2, "-o", "a.png"]
    status, shown = in_terminal(*arguments, cwd=work, env={**environment, **settings})
    assert status == 0
    assert ("[############" in shown) == bar
    assert "\x1b" not in shown
    assert shown.endswith("a.png\r\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "\x1b]52;c;aGk=\x07"],
        ["paint\x1b[31m"],
        ["generate", "a", "--sped\x1b[2J", "1"],
        ["generate", "a", "--output", "\u202egnp.a/b.png"],
        ["ask", "\x9b31m.png", "What?"],
    ],
)
def test_what_was_typed_does_not_control_the_terminal(
    arguments: list[str], work: Path, environment: dict[str, str]
) -> None:
    status, shown = in_terminal(*arguments, cwd=work, env={**environment, "TERM": "xterm"})
    assert status == 2
    assert "\\x" in shown or "\\u" in shown
    assert not {*shown} & {"\x1b", "\x07", "\x9b", "\u202e"}


def test_what_files_hold_does_not_either(command: Run, work: Path, photo: Path) -> None:
    name, asked = "a\x1b[2Jb.png", {"prompt": "a\x1b[31m", "question": "\x9b?", "answer": "\u202e"}
    (work / "data.jsonl").write_text(json.dumps({**asked, "image": name}) + "\n")
    arguments = ["finetune", "--model", "tiny", "--dry-run", "--quadruplets", "data.jsonl"]
    (work / name).write_bytes(photo.read_bytes()[:100])
    refused = command(*arguments)
    assert refused.returncode == 2
    assert r"a\x1b[2Jb.png" in refused.stderr
    (work / name).write_bytes(photo.read_bytes())
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in (r"a\x1b[31m", r"\x9b?", r"\u202e"))
    assert not {*refused.stderr, *done.stdout, *done.stderr} & {"\x1b", "\x9b", "\u202e"}
