"""What a run keeps in its folder: checkpoints, metrics, and a lock.

A checkpoint is whole or not there, and there are enough of them that a full disk or a kill never costs the last one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..atomic import TEMPORARY_PREFIX, atomic_folder, atomic_write, check_output_folder
from ..checkpoints.tensor_files import write_tensors
from ..errors import CheckpointError, OutputError

STATE_FILE = "state.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
_KEPT = 2  # the last checkpoints; one would be lost with a disk that fills while it is replaced


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())


def write_checkpoint(
    folder: Path, step: int, arrays: Mapping[str, dict[str, mx.array]], state: Mapping[str, Any]
) -> None:
    """Writes a checkpoint into `folder`, and removes old ones.

    Args:
        arrays: file stem to named arrays.
        state: what else resuming needs or compares, for JSON.

    Raises:
        OutputError: the disk is full, or the folder can't be written; older checkpoints are untouched.
    """
    target = folder / f"step-{step:07d}"
    if not target.exists():
        with atomic_folder(target) as temporary:
            for name, values in arrays.items():
                write_tensors(temporary / f"{name}.safetensors", dict(values))
            (temporary / STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=2))
    for old in checkpoints(folder)[:-_KEPT]:
        # Renamed first: what is half removed must not be taken for a checkpoint.
        expired = folder / f"{TEMPORARY_PREFIX}{old.name}"
        old.rename(expired)
        shutil.rmtree(expired)


def read_checkpoint(path: Path, state: Mapping[str, Any]) -> tuple[int, dict[str, dict[str, mx.array]]]:
    """The step and the arrays of a checkpoint.

    Args:
        state: what has to be the same in the run that goes on.

    Raises:
        CheckpointError: it is of a run with other settings, which are named, of another version, or damaged.
    """
    try:
        found = json.loads((path / STATE_FILE).read_text())
        arrays = {file.stem: mx.load(str(file)) for file in path.glob("*.safetensors")}
        mx.eval(arrays)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); remove it, and the one before it is used.") from error
    step = found.pop("step", None)
    if not found.keys() >= state.keys():
        raise CheckpointError(
            f"'{path}' was written by another version of this program, and its run can't go on; start again in a new "
            "folder."
        )
    # Through JSON, where a tuple becomes a list.
    other = _differences({key: found.get(key) for key in state}, json.loads(json.dumps(state)))
    if step is None or other:
        raise CheckpointError(
            f"'{path}' belongs to a run with other settings ({', '.join(other)}); continue with those, or choose "
            "another folder."
        )
    return step, arrays  # type: ignore[return-value]


def clean(folder: Path, step: int) -> None:
    """Removes what a killed run left unfinished, and the metrics of steps after `step`, which will be done again."""
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    metrics = folder / METRICS_FILE
    if metrics.exists():
        lines = [line for line in metrics.read_text().splitlines() if _step_of(line) <= step]
        with atomic_write(metrics, overwrite=True) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))


def append_metrics(folder: Path, line: str) -> None:
    """Adds one line to the metrics.

    Raises:
        OutputError: the disk is full, or the file can't be written.
    """
    try:
        with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OutputError(
            f"'{folder / METRICS_FILE}' can't be written ({error.strerror}); free some space, and continue with "
            "--resume."
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of the metrics, in order."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def check_new(folder: Path) -> None:
    """Says early whether a run can start in a folder.

    Raises:
        OutputError: there is a run in it already, or see `mobileo_mlx.files.check_output_folder`.
    """
    if holds_run(folder):
        raise OutputError(f"'{folder}' holds a run already; continue it with --resume, or choose another folder.")
    check_output_folder(folder)


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return any((folder / name).exists() for name in (METRICS_FILE, LOCK_FILE)) or bool(checkpoints(folder))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder while this one lasts. The system releases it when a process is killed.

    Raises:
        OutputError: another run is there.
    """
    import fcntl

    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"'{folder}' is in use by another training; wait, or choose another folder.") from error
        yield


def _differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """The keys in which two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            difference
            for key in dict.fromkeys((*found, *expected))
            for difference in _differences(found.get(key), expected.get(key), str(key))
        ]
    if found == expected:
        return []
    return [f"{name} {_short(found)} there, {_short(expected)} here"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short when the process was killed
