"""A line of a jobs file as a task: checked, with all its options, the name of its picture, and a digest."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, MobileOError, OptionError
from ..files import expand, is_file
from ..generation_options import OPTIONS, AnswerOptions, ModelSpeeds, check_options, check_seed, resolve
from ..image_settings import FORMATS, fits
from ..options import Option, declared, resolve_options, shown
from ..prompts import check_text

if TYPE_CHECKING:
    from ..models.mobileo import MobileOConfig

SHARD = 1000  # lines whose results share a folder
CAPTION = "Describe the image."  # what `caption` asks where a line has no question of its own

# The key of a task's text.
TEXTS = {"generate": "prompt", "edit": "instruction", "ask": "question", "caption": "question"}
DRAWING = ("generate", "edit")

_MAX_ID = 1000  # characters
_MAX_IMAGES = 64
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_URL = re.compile(r"(data|file):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class LineError(ValueError):
    """What is wrong with a line, in words that follow its number."""


@dataclass(frozen=True)
class Task:
    """One picture or one answer to make.

    Attributes:
        line: its number in the jobs file, from 1.
        id: what the user calls it; the line's number where there is no name.
        task: "generate", "edit", "ask" or "caption".
        text: the prompt, the instruction or the question.
        images: paths of files, from the root of the file system.
        options: keyword arguments of the library's function, the seed among them.
        path: where its picture goes, relative to the output folder; "" where it makes an answer.
        digest: of all that makes the result: of this line and of what all lines have in common.
    """

    line: int
    id: str
    task: str
    text: str
    images: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    digest: str = ""

    @property
    def draws(self) -> bool:
        """Whether it makes a picture."""
        return self.task in DRAWING


@dataclass(frozen=True)
class Common:
    """What all lines have in common.

    Attributes:
        folder: that images' paths are relative to.
        options: of all tasks by name, taken where a line does not give its own and its task has it.
        suffix: of pictures.
        model: what `identity.of` says.
        config: of the model, where it is here: sizes of pictures depend on it.
        speeds: likewise.
    """

    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ".png"
    model: Mapping[str, Any] = field(default_factory=dict)
    config: MobileOConfig | None = None
    speeds: ModelSpeeds | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on, as JSON can hold it."""
        return {**self.model, **self.options, "format": self.suffix.removeprefix(".")}

    @functools.cached_property
    def digest(self) -> str:
        """Of the settings."""
        return _digest(self.settings)


@functools.cache
def options_of(task: str) -> Mapping[str, Option]:
    """The options that a line of a task may have: those of the library that JSON can hold."""
    found = declared(OPTIONS[task] if task in DRAWING else AnswerOptions)  # type: ignore[index]
    return {name: option for name, option in found.items() if option.kind is not None and name != "preset"}


def read_task(entry: Any, line: int, common: Common, *, look: bool = False) -> Task:
    """Makes a task of a line's JSON value.

    Args:
        entry: the value.
        line: its number.
        common: what all lines have in common.
        look: whether to look if the images are there, and whether the model can draw the size.

    Raises:
        LineError: it can't be one.
    """
    if not isinstance(entry, dict):
        raise LineError("is not a JSON object")
    task = entry.get("task", "generate")
    if not isinstance(task, str) or task not in TEXTS:
        raise LineError(f"has the task {shown(task)}; there are {', '.join(TEXTS)}")
    known = options_of(task)
    keys = {"id", "task", "image", TEXTS[task], *known, *(("size",) if task in DRAWING else ())}
    if unknown := [key for key in entry if key not in keys and not key.startswith("_")]:
        raise LineError(f"has {shown(unknown[0])}, which {task} does not have; let notes of yours begin with _")
    try:
        name = name_of(entry, line)
        text = _text(entry, task)
        options = _options(entry, task, text, known, common, name)
        if look and common.config is not None and task in DRAWING:
            resolve(common.config, task, text, common.speeds, **options)  # type: ignore[arg-type]
        images = _images(entry, task, common.folder, look)
    except MobileOError as error:
        raise LineError(f"can't be done: {str(error).rstrip('.')}") from error
    path = picture_path(name, line, common.suffix) if task in DRAWING else ""
    # What the model is asked about candidates may repeat the text.
    asked_again = text if (options.get("best_of") or 1) > 1 else ""
    if path and not fits(FORMATS[common.suffix], text, options.get("negative_prompt") or "", asked_again):
        raise LineError("has a text that is too long for the settings in a JPEG file; choose another format")
    digest = _digest([common.digest, name, task, text, entry.get("image"), options])
    return Task(line, name, task, text, images, options, path, digest)


def picture_path(name: str, line: int, suffix: str) -> str:
    """The path of a picture in the output folder: `0012/cat.png` for `cat` in one of the lines 12001 to 13000."""
    return f"{shard_of(line)}/{file_name(name)}{suffix}"


def shard_of(line: int) -> str:
    """The folder of a line's result."""
    return f"{(line - 1) // SHARD:04d}"


def file_name(name: str) -> str:
    """A name that is safe on every system: the id itself where it is one.

    In others each run of characters but ASCII letters, digits, `.`, `_` and `-` becomes one `-`, only the first 60 are
    kept, and `~` with eight digits of the id's SHA-256 follow. On most Macs upper and lower case are the same name: ids
    that differ in nothing else are refused, see `jobs.py`.
    """
    if _SAFE.fullmatch(name) and not name.endswith("."):
        return name
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    return f"{kept}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def name_of(entry: Mapping[str, Any], line: int) -> str:
    """The id of a line, which is its number where it has none.

    Raises:
        LineError: it is no text.
    """
    name = entry.get("id")
    if name is None:
        return str(line)
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID:
        raise LineError(f"has the id {shown(name)}; give a text of 1 to {_MAX_ID} characters, or none")
    return name


def _text(entry: Mapping[str, Any], task: str) -> str:
    key = TEXTS[task]
    text = entry.get(key)
    if text is None and task == "caption":
        return CAPTION
    if text is None:
        raise LineError(f"lacks {key!r}" + ("" if "task" in entry else " (without 'task' it is 'generate')"))
    if not isinstance(text, str):
        raise LineError(f"{key!r} is not text")
    return check_text(text, key)


def _options(
    entry: Mapping[str, Any], task: str, text: str, known: Mapping[str, Option], common: Common, name: str
) -> dict[str, Any]:
    """The options of a line, and those of all lines where it has none of its own; checked."""
    own = {key: entry[key] for key in known if entry.get(key) is not None}
    if entry.get("size") is not None:
        own["width"], own["height"] = _size(entry["size"])
    options = {key: value for key, value in common.options.items() if key in known} | own
    if "seed" not in options:
        # One that neither the order of lines nor a resumed run changes.
        options["seed"] = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    options["seed"] = check_seed(options["seed"])
    if task in DRAWING:
        check_options(task, text, options)  # type: ignore[arg-type]
    else:
        resolve_options(AnswerOptions, options)
    return options


def _size(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise OptionError(f"size {shown(value)}: write WIDTHxHEIGHT in pixels, for example 512x512")
    return int(match[1]), int(match[2])


def _images(entry: Mapping[str, Any], task: str, folder: Path, look: bool) -> tuple[str, ...]:
    value = entry.get("image")
    if task == "generate":
        if value is not None:
            raise LineError("has 'image', which generate does not have; its task may be 'edit'")
        return ()
    paths: list[Any] = value if isinstance(value, list) and task != "edit" else [value]
    if value is None or not paths:
        raise LineError("lacks 'image'")
    if len(paths) > _MAX_IMAGES or not all(isinstance(path, str) and path for path in paths):
        raise LineError(f"'image' is not the path of a file{'' if task == 'edit' else ', or a list of them'}")
    found = []
    for path in paths:
        if _URL.match(path):
            raise LineError(f"'image' is a URL ({path[:40]}); download it, and give the file's path")
        whole = folder / expand(path)
        if look and not is_file(whole, error=ImageError):
            raise LineError(f"names the image '{path}', and there is no such file")
        found.append(str(whole))
    return tuple(found)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
