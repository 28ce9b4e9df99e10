"""What a run keeps in its folder: checkpoints, metrics, and a lock.

A checkpoint is whole or not there, and there are enough of them that a full disk or a kill never costs the last one.
What is found in a folder is believed only as far as it was compared.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..atomic import TEMPORARY_PREFIX, atomic_folder, atomic_write, check_output_folder, remove_unfinished
from ..checkpoints.adapters import WEIGHTS_FILE
from ..checkpoints.tensor_files import read_header, read_tensors, write_tensors
from ..errors import CheckpointError, OutputError, format_names
from ..files import MAX_JSON, JSONError, is_folder, kind_of, parse_json, read_bytes
from ..locks import lock
from ..ops.finite import is_finite
from .model_arrays import Arrays

STATE_FILE = "state.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
SAMPLES_FOLDER = "samples"
FORMAT = 2  # of a checkpoint
_KEPT = 2  # the last checkpoints; one would be lost with a disk that fills while it is replaced
_NAME = re.compile(r"step-(\d{7,12})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 10  # settings in a message
_MAX_METRICS = 2**28  # bytes: of a million steps


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first.

    Raises:
        OutputError: the folder can't be read.
    """
    found = {int(match[1]): path for path in _entries(folder) if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found) if is_folder(found[step], error=OutputError)]


def checkpoint_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step-{step:07d}"


def write_checkpoint(
    folder: Path, step: int, arrays: Arrays, state: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> None:
    """Writes a checkpoint into `folder`, and removes old ones. All metrics so far are flushed to the disk before.

    Args:
        arrays: what it holds.
        state: what else resuming needs or compares, for JSON.
        texts: further files, by name.

    Raises:
        OutputError: the disk is full, or the folder can't be written; older checkpoints are untouched.
    """
    target = folder / checkpoint_name(step)
    try:
        _flush(folder / METRICS_FILE)
        if target.exists():  # of which the run knew nothing, for it does this step again
            _remove(target)
        with atomic_folder(target) as temporary:
            for name, values in arrays.items():
                made_for = "pt" if f"{name}.safetensors" == WEIGHTS_FILE else "mlx"
                write_tensors(temporary / f"{name}.safetensors", dict(values), made_for=made_for)
            for name, text in (texts or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
            content = {"format": FORMAT, "step": step, **state}
            (temporary / STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
        for old in checkpoints(folder)[:-_KEPT]:
            _remove(old)
    except OSError as error:
        raise OutputError(f"'{target}' can't be written ({error.strerror or error}); choose another folder.") from error


def read_state(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about its run; "step" among it.

    Args:
        expected: what has to be the same in the run that goes on.

    Raises:
        CheckpointError: it is of a run with other settings, which are named, of another version, or damaged.
    """
    try:
        found = parse_json(read_bytes(path / STATE_FILE, limit=MAX_JSON))
    except JSONError as error:
        raise _damaged(path, f"{STATE_FILE} {error}") from error
    except CheckpointError as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, f"{STATE_FILE} holds no object")
    if found.get("format") != FORMAT or not found.keys() >= expected.keys():
        raise CheckpointError(
            f"'{path}' was written by another version of this program, and its run can't go on; start again in a new "
            "folder."
        )
    step = found.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or path.name != checkpoint_name(step):
        raise _damaged(path, f"{STATE_FILE} says that its step is {_short(step)}")
    # Through JSON, where a tuple becomes a list.
    other = _differences({key: found.get(key) for key in expected}, json.loads(json.dumps(expected)))
    if other:
        named = ", ".join(other[:_SHOWN])
        raise CheckpointError(
            f"'{path}' belongs to a run with other settings ({named}); continue with those, or choose another folder."
        )
    return found


def read_checkpoint(path: Path, state: Mapping[str, Any], expected: Arrays) -> tuple[int, Arrays]:
    """The step and the arrays of a checkpoint.

    Args:
        state: as for `read_state`.
        expected: arrays of the names, shapes and dtypes that the checkpoint has to hold, no more and no less.

    Raises:
        CheckpointError: see `read_state`; or what it holds is damaged, not finite, or does not fit, and all that does
            not is listed.
    """
    step = read_state(path, state)["step"]
    arrays: Arrays = {}
    missing, unexpected, wrong, infinite = [], [], [], []
    for stem, wanted in expected.items():
        try:
            found = read_tensors(read_header(path / f"{stem}.safetensors"))
            mx.eval(found)
        except (CheckpointError, RuntimeError) as error:
            raise _damaged(path, error) from error
        missing += [name for name in wanted if name not in found]
        unexpected += [name for name in found if name not in wanted]
        for name in wanted.keys() & found.keys():
            if _kind(found[name]) != _kind(wanted[name]):
                wrong.append(f"{name} {_kind(found[name])} instead of {_kind(wanted[name])}")
            elif not is_finite(found[name]):
                infinite.append(name)
        arrays[stem] = found
    problems = [
        f"{kind} {format_names(names)}"
        for kind, names in (
            ("missing are", missing),
            ("unexpected are", unexpected),
            ("of another shape or type are", wrong),
            ("NaN or infinite are", infinite),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"'{path}' does not fit its run: {'; '.join(problems)}; remove it, and the one before it is used."
        )
    return step, arrays


def clean(folder: Path, step: int) -> None:
    """Removes what a killed run left unfinished, and the metrics of steps after `step`, which will be done again.

    Raises:
        OutputError: the metrics can't be read or written.
    """
    for place in (folder, folder / SAMPLES_FOLDER):
        remove_unfinished(place)
    metrics = folder / METRICS_FILE
    kept = [line for line, entry in _metrics(folder) if entry["step"] <= step]
    if kind_of(metrics, error=OutputError):
        with atomic_write(metrics, overwrite=True) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))


def append_metrics(folder: Path, entry: Mapping[str, Any]) -> None:
    """Adds one line to the metrics; numbers that are not finite become null, because JSON has none.

    Raises:
        OutputError: the disk is full, or the file can't be written.
    """
    try:
        with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(entry)) + "\n")
    except OSError as error:
        raise OutputError(
            f"'{folder / METRICS_FILE}' can't be written ({error.strerror}); free some space, and continue with "
            "--resume."
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics, in order: the loss of a step, or of what is held out; others are left out.

    Raises:
        OutputError: the file can't be read.
    """
    return [entry for _, entry in _metrics(folder)]


def check_new(folder: Path) -> None:
    """Says early whether a run can start in a folder.

    Raises:
        OutputError: there is a run in it already, or see `mobileo_mlx.atomic.check_output_folder`.
    """
    if holds_run(folder):
        raise OutputError(f"'{folder}' holds a run already; continue it with --resume, or choose another folder.")
    # A run that failed before its first step leaves its lock.
    left = {path.name for path in _entries(folder)}
    if not left or not all(name == LOCK_FILE or name.startswith(TEMPORARY_PREFIX) for name in left):
        check_output_folder(folder)


def holds_run(folder: Path) -> bool:
    """Whether a run has done something in a folder that it may go on from.

    Raises:
        OutputError: the folder can't be read.
    """
    if not is_folder(folder, error=OutputError):
        return False
    return bool(kind_of(folder / METRICS_FILE, error=OutputError) or checkpoints(folder))


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keeps other runs out of a folder while this one lasts. The system releases it when a process is killed.

    Yields:
        False where the file system has no locks, so that others are not kept out.

    Raises:
        OutputError: another run is there, or the folder can't be written.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise OutputError(f"'{path}' can't be written ({error.strerror}); choose another folder.") from error
    try:
        held = lock(descriptor)
        if held is False:
            raise OutputError(f"'{folder}' is in use by another training; wait, or choose another folder.")
        yield bool(held)
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    if not is_folder(folder, error=OutputError):
        return []
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise OutputError(f"'{folder}' can't be read ({error.strerror}); choose another folder.") from error


def _remove(checkpoint: Path) -> None:
    # Renamed first: what is half removed must not be taken for a checkpoint.
    expired = checkpoint.with_name(f"{TEMPORARY_PREFIX}{checkpoint.name}")
    shutil.rmtree(expired, ignore_errors=True)
    checkpoint.rename(expired)
    shutil.rmtree(expired)


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"'{path}' is damaged ({str(reason).rstrip('.')}); remove it, and the one before it is used."
    )


def _flush(path: Path) -> None:
    """Brings a file to the disk, if there is one."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _metrics(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines that are whole and say what they should, each as it is and as JSON.

    The last one is cut short when the process was killed.
    """
    path = folder / METRICS_FILE
    if not kind_of(path, error=OutputError):
        return
    for line in read_bytes(path, limit=_MAX_METRICS, error=OutputError).splitlines():
        try:
            entry = parse_json(line)
        except JSONError:
            continue
        if isinstance(entry, dict) and _is_number(entry.get("step")):
            held_out = entry.get("held_out")
            if _is_number(entry.get("loss")) or (isinstance(held_out, dict) and "loss" in held_out):
                yield line, entry


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
    """The same with None for each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(array: mx.array) -> str:
    return f"{array.shape} {str(array.dtype).removeprefix('mlx.core.')}"


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
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (found, expected)):
        return [f"other {name}"]
    return [f"{name[:40]} {_short(found)} there, {_short(expected)} here"]


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
