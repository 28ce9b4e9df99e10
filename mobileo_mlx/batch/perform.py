"""One task by one model, and what of its errors is the task's own fault: what every worker of an engine calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import atomic_write, output_error
from ..errors import CheckpointError, ConfigError, ExistsError, MobileOError, OutputError
from ..image_settings import FORMATS, encode
from ..images import load_image, source_of
from .engine import Done, Failed, Setup
from .tasks import Task

if TYPE_CHECKING:
    from ..pipeline import MobileO

DIGEST_KEY = "batch"  # in the settings of a picture, before all others: found in the first bytes of its file

# What no line is to blame for.
_OF_THE_RUN = (CheckpointError, ConfigError, OutputError)


def attempt(model: MobileO, task: Task, setup: Setup, *, write: bool) -> Done | Failed:
    """Computes a task once.

    Args:
        model: computes.
        task: what to do.
        setup: of the run.
        write: whether to write the picture into the folder; else `Done.data` holds it.

    Returns:
        `Failed` for whatever goes wrong with this task alone.

    Raises:
        CheckpointError, ConfigError: the model is broken.
        OutputError: the disk is full, the folder is gone.
    """
    begin = time.perf_counter()
    try:
        data, answer = _draw(model, task, setup.suffix) if task.draws else (None, _answer(model, task))
    except _OF_THE_RUN:
        raise
    except MobileOError as error:
        return Failed(task.line, str(error))
    except Exception as error:  # out of memory, or a bug: other lines may well go through
        return Failed(task.line, f"{type(error).__name__}: {error}")
    if write and data is not None:
        write_picture(setup.folder, task, data)
        data = None
    return Done(task.line, time.perf_counter() - begin, data, answer)


def write_picture(folder: Path, task: Task, data: bytes) -> None:
    """Gives a picture its name in the folder; where another process was faster, its picture stays.

    Raises:
        OutputError: the disk is full, or the folder is not writable.
    """
    path = folder / task.path
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise output_error(error, path.parent) from error
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except ExistsError:
        pass


def with_settings(image: Any, task: Task, suffix: str, metadata: dict[str, Any]) -> bytes:
    """The file of a picture: a Pillow image with the settings that it was made with, and the task's id and digest."""
    return encode(image, FORMATS[suffix], {DIGEST_KEY: task.digest, "id": task.id, **metadata})


def _draw(model: MobileO, task: Task, suffix: str) -> tuple[bytes, None]:
    if task.task == "edit":
        source = load_image(task.images[0])
        result = model.edit(source, task.text, **task.options)
        more = source_of(source, task.images[0])
    else:
        result, more = model.generate(task.text, **task.options), {}
    return with_settings(result.images[0], task, suffix, {**result.metadata(0), **more}), None


def _answer(model: MobileO, task: Task) -> dict[str, Any]:
    answer = model.ask(list(task.images), task.text, **task.options)
    return {"text": answer.text, "finish_reason": answer.finish_reason}
