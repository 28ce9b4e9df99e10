"""Tables of captions as Hugging Face's imagefolder has them: `metadata.jsonl` or `metadata.csv` beside the pictures."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import MobileOError
from ..files import JSONError, parse_json, read_text
from ..training.quadruplets import QA, DataError, Problem
from .folders import Folder
from .said import Said, clean, first_text, pairs

MAX_TABLE = 2**30  # bytes

NAMES = ("metadata.jsonl", "metadata.csv")
_UNREAD = "metadata.parquet"
_PICTURE = ("file_name", "image", "edited_image_file_name", "target_file_name")
_SOURCE = ("source", "source_image", "source_file_name", "source_image_file_name", "input_image", "original_image")
_INSTRUCTION = ("instruction", "edit_prompt", "edit_instruction", "edit")
_TEXT = ("text", "prompt")
_CAPTION = ("caption", "description")


def read_tables(folder: Folder, text_column: str | None = None) -> Iterator[Said | Problem]:
    """What the rows of all tables in a folder say.

    Args:
        folder: with all files.
        text_column: the column of captions, and of instructions; by default those that are usual.
    """
    for table in folder.texts:
        name = posixpath.basename(table)
        if name == _UNREAD:
            yield Problem(table, "is a Parquet file, which is not read; write its rows to metadata.jsonl")
        if name not in NAMES:
            continue
        try:
            content = read_text(folder.path / table, limit=MAX_TABLE, error=DataError)
        except MobileOError as error:
            yield Problem(table, str(error).rstrip("."))
            continue
        rows = _csv_rows(content) if name.endswith(".csv") else _json_rows(content)
        for line, row in rows:
            where = f"{table}, line {line}"
            try:
                if isinstance(row, Exception):
                    raise ValueError(row)
                yield _said(folder, where, posixpath.dirname(table), row, text_column)
            except ValueError as error:
                yield Problem(where, str(error))


def _json_rows(content: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line.strip())
            except JSONError as error:
                yield number, JSONError(str(error).replace("at line 1, ", "at "))


def _csv_rows(content: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(
        io.StringIO(content, newline=""), strict=True
    )  # else an open quote takes in all that follows
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # a quote, a field of more than 128 kB, or a NUL: after it nothing is certain
            yield (
                reader.line_num,
                ValueError(
                    f"is followed by something that is no CSV ({error}); the rest is left out, see to the quotes"
                ),
            )
            return
        if row is None:
            return
        yield reader.line_num, row


def _said(folder: Folder, where: str, beside: str, row: Any, text_column: str | None) -> Said:
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    picture = _file(folder, beside, row, _PICTURE)
    if not picture:
        raise ValueError("has no 'file_name'")
    source = _file(folder, beside, row, _SOURCE)
    if text_column is not None:
        text, caption = clean(row.get(text_column)), ""
    else:
        text = first_text(row, *(_INSTRUCTION if source else ()), *_TEXT)
        caption = first_text(row, *_CAPTION)
    qa = pairs(row.get("qa"))
    if not qa and (question := first_text(row, "question")) and (answer := first_text(row, "answer")):
        qa = (QA(question, answer),)
    if not (text or caption or qa):
        what = repr(text_column) if text_column is not None else ", ".join(map(repr, (*_TEXT, *_CAPTION)))
        raise ValueError(f"has neither questions nor a caption ({what}); name its column with --text-column")
    return Said("metadata", where, picture, text, (caption,) if caption else (), qa, source)


def _file(folder: Folder, beside: str, row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The file that a row names; "" where it names none.

    Raises:
        ValueError: there is no such file in the folder.
    """
    name = next((row[key] for key in keys if isinstance(row.get(key), str) and row[key]), "")
    path = folder.find(name, beside) if name else ""
    if name and not path:
        raise ValueError(f"names '{name}', and there is no such file in the folder")
    return path
