from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mobileo_cli import chat as cli_chat
from mobileo_cli.chat_session import HELP, Session
from mobileo_cli.printing import visible
from PIL import Image

from mobileo_mlx import MobileO

from .conftest import COMMAND


@pytest.fixture
def chat(here, tiny_model: Path):
    """A chat with the small model through a pipe; answers have eight tokens at most."""

    def run(*lines: object, options: tuple[object, ...] = ()):
        typed = "\n".join(map(str, lines)) + "\n"
        result = here("chat", "-m", tiny_model, "--max-tokens", 8, *options, stdin=typed.encode())
        assert result.status == 0, result.err
        return result

    return run


def test_answers_are_those_of_the_library(chat, photo: Path, tiny_model: Path) -> None:
    expected = MobileO.load(tiny_model).chat()
    first, second = (
        "".join(token.text for token in expected.stream(text, images=images, max_tokens=8))
        for text, images in (("What is this?", [photo]), ("And why?", []))
    )
    result = chat(f"/image {photo}", "What is this?", "", "And why?")
    assert result.out == visible(f"{first.strip()}\n{second.strip()}\n")
    assert result.err == f"attached {photo}, 96x64; it goes with your next message\n"


def test_sampling_and_verbose(chat) -> None:
    greedy = chat("Why?")
    sampled = chat("Why?", options=("--temperature", "2", "--seed", "1", "-v"))
    assert sampled.out != greedy.out
    assert re.search(r"decode [\d.]+ s; peak memory [\d.]+ [kM]B( and .* in MLX's cache)?$", sampled.err)


def test_quit_ends_it(chat) -> None:
    assert chat("/quit", "/help").out == ""


def test_help(chat) -> None:
    assert chat("/help").out == HELP + "\n"


def test_clear_forgets(chat) -> None:
    alone = chat("Why?").out
    after = chat("Hello, who are you?", "/clear", "Why?").out
    assert after.endswith(alone)


def test_generate_and_edit(chat) -> None:
    result = chat("/generate a cat", "/edit make it red")
    drawn, edited = result.out.splitlines()
    assert drawn.startswith("a-cat-")
    assert edited.startswith("make-it-red-")
    for path in (drawn, edited):
        with Image.open(path) as image:
            image.load()


def test_edit_takes_the_attached_image(chat, photo: Path) -> None:
    assert chat(f"/image {photo}", "/edit make it red").out.startswith("make-it-red-")


@pytest.mark.parametrize("quoted", ["'my photo.png'", '"my photo.png"', r"my\ photo.png", "my photo.png"])
def test_files_as_a_terminal_writes_them(chat, photo: Path, work: Path, quoted: str) -> None:
    (work / "my photo.png").write_bytes(photo.read_bytes())
    assert chat(f"/image {quoted}").err.startswith("attached my photo.png, 96x64")


def test_any_blank_ends_a_commands_name(chat, photo: Path) -> None:
    assert chat(f"/image\t {photo}").err.startswith(f"attached {photo}, 96x64")


def test_mistakes_do_not_end_the_chat(chat, work: Path) -> None:
    (work / "broken.png").write_bytes(b"\x89PNG")
    lines = [
        "/image nowhere.png",
        "/image broken.png",
        "/image",
        "/edit make it red",
        "/paint",
        "/save talk.txt",
        "/save nowhere/talk.md",
        "<image>",
    ]
    result = chat(*lines, "Why?")
    errors = result.err.splitlines()
    assert len(errors) == len(lines)
    assert all(line.startswith("error: ") for line in errors)
    for word, error in zip(["nowhere.png", "broken.png", "/image", "/image", "/paint", ".md"], errors, strict=False):
        assert word in error
    assert result.out == chat("Why?").out
    assert [path.name for path in work.iterdir()] == ["broken.png"]


NAMES = [
    "~cat.png",
    "~nobody-here/x.md",
    "data:image/png;base64," + "A" * 5000,
    "A" * 300 + ".md",
    "a\0b.md",
    ".",
    "http://a/b",
]


@pytest.mark.parametrize("command", ["/image", "/save"])
def test_names_that_cannot_be_do_not_end_the_chat(chat, command: str) -> None:
    result = chat(*(f"{command} {name}" for name in NAMES), "/help")
    errors = result.err.splitlines()
    assert len(errors) == len(NAMES)
    assert all(line.startswith("error: ") for line in errors)
    assert result.out == HELP + "\n"


@pytest.mark.parametrize("command", ["/image", "/save"])
def test_what_the_system_refuses_does_not_end_the_chat(chat, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root meets no folder that is closed, the system is made to say so."""
    ask = os.stat

    def closed(path: object, *arguments: object, **options: object) -> os.stat_result:
        if "closed" in os.fspath(path) if isinstance(path, str | os.PathLike) else False:
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        return ask(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", closed)
    result = chat(f"{command} closed/cat.md", "/help")
    (error,) = result.err.splitlines()
    assert error.startswith("error: 'closed/cat.md' can't be ")
    assert "Operation not permitted" in error
    assert result.out == HELP + "\n"


def test_an_error_of_the_system_does_not_end_the_chat(chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(session: Session) -> None:
        raise OSError(errno.EIO, "Input/output error", "cat.png")

    monkeypatch.setattr(Session, "_clear", fail)
    result = chat("/clear", "/help")
    assert (result.err, result.out) == ("error: Input/output error (cat.png).\n", HELP + "\n")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/Users/me/cat.png", "type /image /Users/me/cat.png"),
        ("/cat.png", "type /image /cat.png"),
        (r"/Users/me/my\ cat.png", r"type /image /Users/me/my\ cat.png"),
        ("'{photo}'", "type /image before its name: /image '{photo}'"),
        ("/paint a cat. A small one", "/help lists them"),
    ],
)
def test_a_file_that_was_dropped(chat, photo: Path, line: str, hint: str) -> None:
    result = chat(line.format(photo=photo))
    assert result.out == ""
    assert hint.format(photo=photo) in result.err


def test_a_quoted_message_is_no_file(chat) -> None:
    result = chat("'/nowhere/cat.png'", '"a" or "b"?', "'" + "A" * 500)
    assert result.err == ""


def test_a_byte_order_mark_is_passed_over(chat) -> None:
    assert chat("\ufeff/help").out == HELP + "\n"


def test_lines_without_end(here, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_chat, "_MAX_LINE", 50)
    typed = b"\n".join([b"a" * 120, b"/help", b"b" * 50 * 16 + b"\n/help"])
    result = here("chat", "-m", tiny_model, stdin=typed)
    assert (result.status, result.out) == (0, HELP + "\n" + HELP + "\n")
    assert result.err == "error: a line is longer than 50 characters; it was passed over.\n" * 2
    result = here("chat", "-m", tiny_model, stdin=b"\0" * 10_000)
    assert (result.status, result.out) == (2, "")
    assert "a line on standard input has more than 800 characters" in result.err


def test_save_as_json(chat, photo: Path) -> None:
    result = chat(f"/image {photo}", "What is this?", "/generate a cat", "/save talk.json", "/save talk.json")
    answer, drawn, first, second = result.out.splitlines()[-4:]
    assert (first, second) == ("talk.json", "talk-1.json")
    saved = json.loads(Path("talk.json").read_text(encoding="utf-8"))
    assert [(entry["role"], entry["images"]) for entry in saved] == [
        ("user", [str(photo)]),
        ("assistant", []),
        ("user", []),
        ("assistant", [drawn]),
    ]
    assert saved[0]["content"] == "What is this?"
    assert visible(saved[1]["content"]).endswith(answer)
    assert saved[2]["content"] == "/generate a cat"


def test_save_as_markdown(chat) -> None:
    result = chat("What is 猫?", "/save talk.md")
    *answer, name = result.out.splitlines()
    assert name == "talk.md"
    text = "\n".join(answer)
    expected = f"# Chat\n\n**User**\n\nWhat is 猫?\n\n**Assistant**\n\n{text}\n"
    assert Path("talk.md").read_text(encoding="utf-8").rstrip() == expected.rstrip()


def begin_chat(model: Path, typed: bytes, work: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A chat in a process of its own, which has begun to answer the lines that were typed, at any length."""
    process = subprocess.Popen(
        [str(COMMAND), "chat", "-m", str(model), "--max-tokens", "100000", "--temperature", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(typed)
    process.stdin.flush()
    process.stdout.read(20)
    return process


def test_interruption_stops_the_answer_only(
    photo: Path, tiny_model: Path, work: Path, environment: dict[str, str]
) -> None:
    process = begin_chat(tiny_model, b"Tell me everything.\n", work, environment)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/save talk.json\n/quit\n", timeout=120)
    assert process.returncode == 0, err
    assert err == b"stopped\n"
    assert out.endswith(b"talk.json\n")
    saved = json.loads((work / "talk.json").read_text(encoding="utf-8"))
    assert [entry["role"] for entry in saved] == ["user", "assistant"]
    assert saved[1]["content"]


def test_sigterm_ends_it(tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    """In the middle of an answer, which Ctrl-C would only stop, and while it waits for a line."""
    for typed in (b"Tell me everything.\n", b"/help\n"):
        process = begin_chat(tiny_model, typed, work, environment)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
        assert process.stderr is not None
        assert process.stderr.read() == b"mobileo-mlx: ended by SIGTERM\n"
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env, start_new_session=True
        )
        os.close(slave)
        self.shown = ""
        self.seen = 0  # how much of it has been waited for

    def wait_for(self, text: str) -> None:
        limit = time.monotonic() + 120  # of a test that hangs
        while text not in self.shown[self.seen :]:
            assert time.monotonic() < limit, self.shown
            if select.select([self.master], [], [], 1)[0]:
                self.shown += os.read(self.master, 65536).decode()
        self.seen = self.shown.index(text, self.seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_in_a_terminal(tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    arguments = [str(COMMAND), "chat", "-m", str(tiny_model), "--max-tokens", "4"]
    terminal = Terminal(arguments, work, {**environment, "TERM": "dumb"})
    terminal.wait_for("> ")
    assert "/help" in terminal.shown
    terminal.type("/generate a cat\n")
    terminal.wait_for("a-cat-")
    terminal.wait_for("> ")
    terminal.type("half a li")
    terminal.wait_for("half a li")
    time.sleep(0.1)  # a signal in the instant before readline waits would be seen with the next key only
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("Ctrl-D")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=120) == 0
    os.close(terminal.master)
    assert (Path(environment["XDG_STATE_HOME"]) / "mobileo-mlx" / "chat_history").read_text().endswith("a cat\n")


def test_history_that_cannot_be_kept(tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    (work / "file").touch()
    env = {**environment, "XDG_STATE_HOME": str(work / "file"), "TERM": "dumb"}
    terminal = Terminal([str(COMMAND), "chat", "-m", str(tiny_model)], work, env)
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.process.wait(timeout=120) == 0
    os.close(terminal.master)
    assert "Traceback" not in terminal.shown


# A chat in which one command has a fault of the program.
FAULTY = """
import sys
from mobileo_cli.chat_session import Session
from mobileo_cli.main import main

def fail(session):
    raise KeyError("a fault\x1b")

Session._clear = fail
sys.exit(main())
"""


def test_a_fault_of_the_program_leaves_the_conversation(
    tiny_model: Path, work: Path, environment: dict[str, str]
) -> None:
    arguments = [sys.executable, "-c", FAULTY, "chat", "-m", str(tiny_model), "--max-tokens", "4"]
    terminal = Terminal(arguments, work, {**environment, "TERM": "dumb"})
    for line in ("What is this?", "/clear"):
        terminal.wait_for("> ")
        terminal.type(line + "\n")
    terminal.wait_for("Save the conversation?")
    terminal.type("nowhere/talk.md\n")
    terminal.wait_for("error: ")
    terminal.wait_for("Save the conversation?")
    terminal.type("talk.json\n")
    terminal.wait_for("KeyError: ")
    assert terminal.process.wait(timeout=120) == 1
    os.close(terminal.master)
    assert [entry["role"] for entry in json.loads((work / "talk.json").read_text())] == ["user", "assistant"]


def test_a_fault_of_the_program_in_a_pipe(tiny_model: Path, work: Path, environment: dict[str, str]) -> None:
    """Nobody is there to ask, and nothing is written unasked."""
    arguments = [sys.executable, "-c", FAULTY, "chat", "-m", str(tiny_model), "--max-tokens", "4"]
    done = subprocess.run(arguments, input=b"Why?\n/clear\n", cwd=work, env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.endswith(b"KeyError: 'a fault\\x1b'\n")
    assert list(work.iterdir()) == []
