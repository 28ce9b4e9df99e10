"""What may become of hostile input: it is used, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from mobileo_mlx.errors import MobileOError

from .limits import TooSlow

_LONGEST = 8000  # characters of a message; one lists up to 20 names of each kind
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REPR = re.compile(r" object at 0x[0-9a-f]+>|<class '")
_OURS = ("mobileo_mlx", "mobileo_cli")


ended: list[int] = []  # exit statuses of the commands that were run


class Broken(Exception):
    """Raised where a command did not end as promised."""


def fault(use: Callable[[], object]) -> str:
    """Uses an input; what was wrong with how that ended, or "" if it ended as promised."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            use()
        except MobileOError as error:
            return message_fault(str(error))
        except (KeyboardInterrupt, TooSlow):
            raise
        except BaseException as error:  # tokenizers' panics are no Exception
            if isinstance(error, Broken):
                return f"Broken: {error}"
            return f"{type(error).__name__} in {_place(error)}: {str(error)[:200]}"
    shown = [w for w in warned if not issubclass(w.category, DeprecationWarning | ResourceWarning)]
    return f"warns: {shown[0].message}"[:300] if shown else ""


def message_fault(message: str) -> str:
    """What keeps a message from being one clean sentence; "" if it is one. The command shows control characters."""
    text = " ".join(message.split())
    if not text:
        return "an empty message"
    if len(text) > _LONGEST:
        return f"a message of {len(text)} characters: {text[:200]}"
    if not text.endswith((".", "!", "?", ")", "'")):
        return f"not a sentence: {text[-300:]}"
    if _REPR.search(text) or "Traceback" in text:
        return f"shows Python's insides: {text[:300]}"
    return ""


def command(*arguments: object, stdin: bytes = b"", statuses: tuple[int, ...] = (0, 2)) -> str:
    """Runs the command in this process, and returns what it wrote to standard output.

    Raises:
        Broken: another exit status, no sentence for an error, or control characters that would reach a terminal.
    """
    from mobileo_cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    ended.append(status)
    said, noted = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))  # type: ignore[attr-defined]
    if status not in statuses:
        raise Broken(f"exit status {status}: {noted[-300:]}")
    if status == 2:
        last = noted.rstrip("\n").rpartition("\n")[2]
        if not last.startswith("mobileo-mlx: error: "):
            raise Broken(f"no error for status 2: {noted[-300:]}")
        if problem := message_fault(last):
            raise Broken(problem)
    check_output("standard output", said)
    check_output("standard error", noted)
    return said


def report(*arguments: object) -> None:
    """Runs the command with `--json`, as `command` does.

    Raises:
        Broken: see `command`; or what it reports is no JSON object.
    """
    said = command(*arguments, "--json")
    if ended[-1] == 0 and not isinstance(json.loads(said, parse_constant=_no_number), dict):
        raise Broken(f"no JSON object: {said[:300]}")


def _no_number(name: str) -> float:
    raise Broken(f"{name} in a report, which is no JSON")


def check_output(name: str, text: str) -> None:
    """Raises Broken where control characters would reach a terminal."""
    if found := _CONTROL.search(text):
        start = max(found.start() - 80, 0)
        raise Broken(f"a raw control character on {name}: {text[start : found.start() + 20]!r}")


def _place(error: BaseException) -> str:
    """The innermost place of ours, and where it was raised if that is elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in _OURS)]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (ours[-1:] + frames[-1:])]
    return " < ".join(dict.fromkeys(reversed(places)))
