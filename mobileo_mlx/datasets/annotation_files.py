"""Lists of annotations in one JSON file: conversations as LLaVA and ShareGPT write them, and captions as COCO's."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MobileOError
from ..files import JSONError, absolute, parse_json, read_text
from ..training.quadruplets import QA, DataError, Problem
from .folders import Folder
from .said import Said, clean, first_text

MAX_FILE = 2**30  # bytes; COCO's captions have 90 million, LLaVA's instructions a billion

# An answer to such a question describes the picture.
_ASKS_FOR_CAPTION = re.compile(
    r"\b(describ\w*|descripti\w*|caption\w*|summar\w*|(explain|narrate|depict)\b.*\b(image|picture|photo))",
    re.IGNORECASE | re.DOTALL,
)
_USERS, _MODELS = ("human", "user"), ("gpt", "assistant", "model")


def find_annotations(folder: Folder) -> list[str]:
    """JSON files that stand in the folder itself; but none of a picture's name, as downloaders write them."""
    stems = {posixpath.splitext(picture)[0] for picture in folder.pictures}
    return [
        name
        for name in folder.texts
        if "/" not in name and name.lower().endswith((".json", ".jsonl")) and name != "metadata.jsonl"
        if posixpath.splitext(name)[0] not in stems
    ]


def read_annotations(folder: Folder, path: Path, *, named: bool) -> Iterator[Said | Problem]:
    """What a file of annotations says of pictures in the folder.

    Args:
        folder: with all pictures.
        path: of the file, in the folder or elsewhere.
        named: whether the user has named it; otherwise one of another kind is passed over.

    Raises:
        DataError: it is named, and can't be read, or is of another kind.
    """
    name, beside = path.name, ""
    whole = absolute(path, error=DataError)
    if whole.startswith(f"{folder.path}/"):
        name = whole[len(str(folder.path)) + 1 :]
        beside = posixpath.dirname(name)
    try:
        value = _parse(read_text(path, limit=MAX_FILE, error=DataError), lines=name.lower().endswith(".jsonl"))
    except MobileOError:
        if named:
            raise
        return
    except JSONError as error:
        if named:
            raise DataError(f"--annotations '{path}' {error}; give another file.") from error
        return
    reader = _kind(value)
    if reader is None:
        if named:
            raise DataError(
                f"--annotations '{path}' is neither a list with 'image' and 'conversations' nor COCO's captions; give "
                "another file, or leave it out."
            )
        return
    missing: list[str] = []
    for where, file, said in reader(value):
        try:
            picture = folder.find(file, beside)
        except ValueError as error:
            yield Problem(f"{name}, {where}", str(error))
            continue
        if picture:
            yield Said(picture=picture, where=f"{name}, {where}", **said)
        else:
            missing.append(file)
    if missing:
        yield Problem(
            name, f"names {len(missing)} pictures that are not in the folder; the first one is '{missing[0]}'"
        )


def _parse(text: str, *, lines: bool) -> Any:
    if not lines or text.lstrip().startswith("["):
        return parse_json(text)
    return [parse_json(line) for line in text.split("\n") if line.strip()]


def _kind(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return _coco
    if isinstance(value, list) and any(isinstance(one, dict) and _turns(one) for one in value[:100]):
        return _conversations
    return None


def _turns(entry: dict[str, Any]) -> list[Any]:
    lists = (entry[key] for key in ("conversations", "messages") if isinstance(entry.get(key), list))
    turns: list[Any] = next(lists, [])
    return turns if all(isinstance(turn, dict) for turn in turns) else []


def _conversations(entries: list[Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """For each entry with a picture its place, the picture's name, and what `Said` has of it."""
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            continue
        image = entry.get("image") or entry.get("images")
        image = image[0] if isinstance(image, list) and len(image) == 1 else image
        if not isinstance(image, str) or not image:
            continue  # some of LLaVA's are about no picture
        qa = []
        question = ""
        for turn in _turns(entry):
            who = turn.get("from") or turn.get("role")
            text = first_text(turn, "value", "content")
            if who in _USERS:
                question = text
            elif who in _MODELS:
                if question and text:
                    qa.append(QA(question, text))
                question = ""
        if not qa:
            continue
        # Where it is the first thing that is asked for, it is of the whole picture.
        caption = first_text(entry, "caption") or (qa[0].answer if _ASKS_FOR_CAPTION.search(qa[0].question) else "")
        yield f"entry {number}", image, {"kind": "conversations", "text": caption, "qa": tuple(qa)}


def _coco(value: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The same of COCO's captions, of which a picture has five."""
    captions = defaultdict(list)
    for one in value["annotations"]:
        if isinstance(one, dict) and isinstance(one.get("image_id"), int | str) and (text := clean(one.get("caption"))):
            captions[one["image_id"]].append(text)
    for image in value["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            continue
        texts, file = captions.get(image["id"], []), image.get("file_name")
        if texts and isinstance(file, str) and file:
            yield f"image {image['id']}", file, {"kind": "coco", "captions": tuple(texts)}
