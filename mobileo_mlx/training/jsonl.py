"""Quadruplets from a JSONL file, also gzipped, or from a JSON array.

A line is one object: `prompt`, `image`, and `question` with `answer`, or a list `qa` of such pairs; an edit has
`source_image` too. Paths are relative to the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..files import MAX_JSON, JSONError, expand, open_input, parse_json
from ..prompts import check_text
from .gzipped import chunks
from .quadruplets import QA, DataError, ImageRef, Malformed, Problem, Sample

MAX_LINE = 2**20  # bytes
_NO_TEXT = 2**26  # bytes without a line's end, after which nothing else is expected, such as of a file that has holes
_MAX_PATH = 4096  # characters; more than any system takes
_BLANK = b" \t\r\n"
_URL = re.compile(r"(data|file):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# What a file is that begins so; where a tar file says it is one.
_OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"PK\x03\x04": "a zip file; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"PAR1": "a Parquet file; write its rows as JSON, one object a line, and its images as files",
    b"\x89PNG": "an image; name the JSONL file that describes it",
    b"\xff\xd8\xff": "an image; name the JSONL file that describes it",
}
_TAR = (257, b"ustar")
# Keys of other formats, and what to do; looked for where one of ours is missing.
_HINTS = {
    "conversations": "it is in LLaVA's format: give 'prompt', 'image', 'question' and 'answer' in place of "
    "'conversations'",
    "messages": "it is a chat: give 'prompt', 'image', 'question' and 'answer' in place of 'messages'",
    "file_name": "it is of Hugging Face's metadata.jsonl: call 'file_name' 'image', and the caption 'prompt'",
}


def read_lines(path: Path, questions: bool) -> Iterator[Sample | Problem]:
    """The samples of a file, whose images are not opened yet, and what is wrong with the other lines.

    Args:
        questions: whether every line needs a question and an answer; otherwise they are not read.

    Raises:
        DataError: the file can't be read, or is of another kind.
    """
    with open_input(path, error=DataError) as file:
        try:
            content = chunks(file)
            start = next(content, b"")
            _check_kind(path, start)
            entries: Iterable[tuple[str, Any]] | None = None
            if start.removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK).startswith(b"["):
                start += _first_bytes(content, MAX_JSON)
                entries = _array(start)
            for name, entry in _lines(chain([start], content)) if entries is None else entries:
                try:
                    if isinstance(entry, Exception):
                        raise entry
                    yield _sample(entry, name, path.parent, questions)
                except (Malformed, PromptError, JSONError) as error:
                    # One line has one line alone.
                    yield Problem(name, str(error).replace("at line 1, ", "at "))
        except Malformed as error:
            yield Problem(path.name, str(error))


def _check_kind(path: Path, start: bytes) -> None:
    offset, mark = _TAR
    kinds = [what for magic, what in _OTHER_FILES.items() if start.startswith(magic)]
    if start[offset:].startswith(mark):
        kinds.append("a tar file; if it holds samples, let its name end in .tar")
    if kinds:
        raise DataError(f"'{path}' is {kinds[0]}.")


def _first_bytes(content: Iterator[bytes], limit: int) -> bytes:
    """What comes first, a little more than `limit` at most."""
    parts, size = [], 0
    while size <= limit and (data := next(content, b"")):
        parts.append(data)
        size += len(data)
    return b"".join(parts)


def _array(data: bytes) -> Iterable[tuple[str, Any]] | None:
    """The entries of a whole file that begins with a bracket, by name; None where its lines are read by themselves.

    Raises:
        Malformed: it is an array that can't be read.
    """
    problem = JSONError(f"is larger than {MAX_JSON >> 20} MB; write one object a line")
    if len(data) <= MAX_JSON:
        try:
            values = parse_json(data)
            return ((f"entry {number}", value) for number, value in enumerate(values, start=1))
        except JSONError as error:
            problem = error
    lines = (line for line in data.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip())
    first = next(lines)
    if _is_json(first) or (first.strip() != b"[" and _is_json(next(lines, b""))):
        return None
    raise Malformed(f"begins as a JSON array, but {problem}")


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except JSONError:
        return False
    return True


def _lines(content: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """The values of all lines that are not blank, or what is wrong with them, by name.

    A line ends as in any system's text: with a line feed, a carriage return, or both.
    """
    for number, line in enumerate(_split(content), start=1):
        if line is None:
            yield f"line {number}", Malformed(f"is longer than {MAX_LINE >> 20} MB; one object a line is read")
        elif line.strip():
            try:
                yield f"line {number}", parse_json(line.rstrip(_BLANK))
            except JSONError as error:
                yield f"line {number}", error


def _split(content: Iterable[bytes]) -> Iterator[bytes | None]:
    """The lines of a file that is read in pieces; None for one that is longer than `MAX_LINE`.

    Raises:
        Malformed: one is so long that this is no text.
    """
    rest, left_out = b"", 0
    for data in filter(None, content):
        *whole, rest = (rest + data).splitlines(keepends=True)
        for line in whole:
            yield None if left_out or len(line) > MAX_LINE else line
            left_out = 0
        if left_out or len(rest) > MAX_LINE:
            left_out += len(rest)
            rest = rest[-1:]  # of which a line's end may be the second half
        if left_out > _NO_TEXT:
            raise Malformed(f"has a line of more than {_NO_TEXT >> 20} MB, so it is no text of one object a line")
    if rest:
        yield None if left_out else rest


def _sample(entry: Any, name: str, folder: Path, questions: bool) -> Sample:
    if not isinstance(entry, dict):
        raise Malformed("is not a JSON object")
    prompt, path = _texts(entry, "prompt", "image")
    image = _image("image", path, folder)
    source = None
    if entry.get("source_image") is not None:
        source = _image("source_image", _texts(entry, "source_image")[0], folder)
    return Sample(name, check_text(prompt), image, source, image, _pairs(entry) if questions else ())


def _image(key: str, text: str, folder: Path) -> ImageRef:
    if found := _URL.match(text):
        remedy = "download it" if "//" in found[0] else "write the picture into a file"
        if found[0].lower() == "file:":
            remedy = "leave the beginning out"
        raise Malformed(f"{key!r} is a URL ({text[:40]}); {remedy}, and give the file's path")
    if len(text) > _MAX_PATH:
        raise Malformed(f"{key!r} is no path of a file: it has {len(text)} characters")
    return ImageRef(folder / expand(text))


def _pairs(entry: dict[str, Any]) -> tuple[QA, ...]:
    if "qa" not in entry:
        return (_pair(entry),)
    pairs = entry["qa"]
    if "question" in entry or "answer" in entry:
        raise Malformed("has 'qa' and a 'question' or 'answer' beside it; give one or the other")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, dict) for pair in pairs):
        raise Malformed("'qa' is not a list of objects, each with 'question' and 'answer'")
    return tuple(_pair(pair) for pair in pairs)


def _pair(entry: dict[str, Any]) -> QA:
    question, answer = _texts(entry, "question", "answer")
    return QA(check_text(question, "question"), check_text(answer, "answer"))


def _texts(entry: dict[str, Any], *keys: str) -> list[str]:
    """The values of these keys, each a text with something in it."""
    if missing := [repr(key) for key in keys if key not in entry]:
        hints = [f"; {hint}" for key, hint in _HINTS.items() if key in entry]
        raise Malformed(f"lacks {' and '.join(missing)}{hints[0] if hints else ''}")
    for key in keys:
        if not isinstance(entry[key], str):
            raise Malformed(f"{key!r} is not text")
        if not entry[key].strip():
            raise Malformed(f"{key!r} is empty")
    return [entry[key] for key in keys]
