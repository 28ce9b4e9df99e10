"""Texts beside pictures, with their name: `cat.txt` or `cat.caption` for `cat.png`, and questions in `cat.qna.txt`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from ..errors import MobileOError
from ..files import read_text
from ..training.quadruplets import DataError, Problem
from ..training.webdataset import parse_qna
from .folders import Folder
from .said import Said, clean

MAX_TEXT = 2**20  # bytes


def read_sidecars(folder: Folder) -> Iterator[Said | Problem]:
    """What the texts beside pictures say: of one of an edit, `.txt` is the instruction and `.caption` describes it."""
    for picture in folder.pictures:
        stem = posixpath.splitext(picture)[0]
        try:
            text, caption = (clean(_read(folder, stem + suffix)) for suffix in (".txt", ".caption"))
            qa = parse_qna(_read(folder, stem + ".qna.txt").replace("\r", "\n"))
        except MobileOError as error:
            yield Problem(picture, f"its text can't be used: {str(error).rstrip('.')}")
            continue
        if text or caption or qa:
            where = next(stem + end for end in (".txt", ".caption", ".qna.txt") if stem + end in folder)
            yield Said("sidecar", where, picture, text, (caption,) if caption else (), tuple(qa))


def find_edits(folder: Folder, suffix: str) -> dict[str, str]:
    """Pictures that were made of another one, by their names: of `a_edit.png`, and `a_edit2.png`, it is `a.png`.

    Args:
        folder: with all pictures.
        suffix: of edits' names, such as `_edit`; "" where there are none.

    Returns:
        the paths of the originals by those of the edits.
    """
    if not suffix:
        return {}
    by_stem: dict[str, str] = {}
    for picture in folder.pictures:
        by_stem.setdefault(posixpath.splitext(picture)[0], picture)
    edit = re.compile(rf"(.+){re.escape(suffix)}[_-]?[0-9]*", re.DOTALL)
    matches = ((picture, edit.fullmatch(posixpath.splitext(picture)[0])) for picture in folder.pictures)
    return {picture: by_stem[match[1]] for picture, match in matches if match and match[1] in by_stem}


def _read(folder: Folder, name: str) -> str:
    return read_text(folder.path / name, limit=MAX_TEXT, error=DataError) if name in folder else ""
