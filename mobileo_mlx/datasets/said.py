"""What one source says of one picture: the common form of sidecars, tables and annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..training.quadruplets import QA

# In the order in which they are believed, where several say something of a picture.
KINDS = ("sidecar", "metadata", "conversations", "coco")


@dataclass(frozen=True)
class Said:
    """What is said of a picture; all of it may be missing.

    Attributes:
        kind: of the source, one of `KINDS`.
        where: for messages, such as `cat.txt` or `metadata.jsonl, line 3`.
        picture: its path in the folder.
        text: a caption, or of an edit the instruction.
        captions: what describes it, whether it is an edit or not.
        qa: questions about it, with answers.
        source: of an edit the picture that it was made of, as a path in the folder.
    """

    kind: str
    where: str
    picture: str
    text: str = ""
    captions: tuple[str, ...] = ()
    qa: tuple[QA, ...] = ()
    source: str = ""


def clean(text: Any) -> str:
    """A text on one line, without the marks of images' places that other programs' lists have; "" for what is none."""
    return " ".join(re.sub(r"<(?:image|img|video)>", " ", text).split()) if isinstance(text, str) else ""


def first_text(entry: Mapping[str, Any], *keys: str) -> str:
    """The first of these values that is a text with something in it."""
    return next(filter(None, (clean(entry.get(key)) for key in keys)), "")


def pairs(entries: Any) -> tuple[QA, ...]:
    """Questions and answers of a list of objects; what is none is passed over."""
    if not isinstance(entries, list):
        return ()
    found = ((first_text(one, "question"), first_text(one, "answer")) for one in entries if isinstance(one, dict))
    return tuple(QA(question, answer) for question, answer in found if question and answer)
