"""What `mobileo-mlx doctor` found out about this machine, for the runs that follow.

One small file holds an entry for each device that it was run on: the precision of components whose default failed
there, and the fastest of equivalent forms by shape. What was found with another chip or another version of MLX does not
count, and a file that is missing, damaged or foreign counts as empty: nothing here ever stops a task.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..atomic import atomic_write, check_output
from ..errors import MobileOError, OutputError
from ..files import read_json
from . import backend

_FORMAT = 1


@dataclass(frozen=True)
class DeviceSettings:
    """What is known of one device.

    Attributes:
        precision: the name of a dtype by component, where it is not that of the table in `checkpoints.precision`.
        forms: the name of the fastest form by what is computed, operation and shape; see `ops.forms`.
    """

    precision: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)


def path() -> Path:
    """`device.json` in the folder MOBILEO_CACHE, by default `mobileo-mlx` in the user's cache.

    Raises:
        OutputError: neither is known.
    """
    folder = os.environ.get("MOBILEO_CACHE")
    if folder:
        return Path(folder) / "device.json"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OutputError("this user has no home folder; set MOBILEO_CACHE to a folder for settings.") from error
    return cache / "mobileo-mlx" / "device.json"


def device_key() -> str:
    """What settings hold for: such as "metal, Apple M2 Pro, MLX 0.32.4"."""
    return f"{backend.backend()}, {backend.chip_name() or 'unnamed chip'}, MLX {mx.__version__}"  # type: ignore[attr-defined]


def current() -> DeviceSettings:
    """The settings of MLX's default device. The file is read once in a process."""
    return _settings(device_key())


def save(settings: DeviceSettings) -> Path:
    """Writes the settings of MLX's default device beside those of others, and returns the file.

    Raises:
        OutputError: it can't be written.
    """
    file = check_writable()
    forget()  # another process may have written since
    entry = {"precision": dict(settings.precision), "forms": dict(settings.forms)}
    content = {"format": _FORMAT, "devices": {**_entries(), device_key(): entry}}
    with atomic_write(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    forget()
    return file


def check_writable() -> Path:
    """Makes the folder and returns the file: asked before minutes are spent on what is to be stored.

    Raises:
        OutputError: it can't be written.
    """
    file = path()
    # An OSError here says the same as that of the check, whose error names the file.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
    check_output(file, overwrite=True)
    return file


def reset() -> bool:
    """Removes the file; returns whether there was one.

    Raises:
        OutputError: it can't be removed; or see `path`.
    """
    file = path()
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OutputError(f"'{file}' can't be removed ({error.strerror or error}); remove it yourself.") from error
    finally:
        forget()
    return True


def forget() -> None:
    """Reads the file again when it is asked for next."""
    _entries.cache_clear()
    _settings.cache_clear()


@functools.cache
def _settings(key: str) -> DeviceSettings:
    entry = _entries().get(key)
    if not isinstance(entry, dict):
        return DeviceSettings()
    return DeviceSettings(_texts(entry.get("precision")), _texts(entry.get("forms")))


@functools.cache
def _entries() -> dict[str, Any]:
    try:
        content = read_json(path())
    except MobileOError:
        return {}
    devices = content.get("devices")
    return devices if content.get("format") == _FORMAT and isinstance(devices, dict) else {}


def _texts(value: Any) -> dict[str, str]:
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
