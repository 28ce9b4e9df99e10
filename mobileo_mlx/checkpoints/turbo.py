"""The few-step adapter that a model brings along: the folder `turbo` inside of its own.

It is an adapter as any other (see `adapters`), with low-rank updates of the DiT alone and with the options that it was
trained for, which `finetune --objective consistency` writes. It changes nothing until a drawing asks for it.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..atomic import atomic_folder
from ..errors import CheckpointError
from ..files import is_file, read_bytes
from .adapter_config import CONFIG_FILE
from .adapters import WEIGHTS_FILE, Adapter
from .checkpoint import Checkpoint
from .hub import TURBO
from .tensor_files import read_tensors, write_tensors

FILES = (WEIGHTS_FILE, CONFIG_FILE)  # the configuration, by which it is found, comes last

_MOST_BYTES = 2**31  # of one that is copied; the published model's whole DiT has 1.2 GB


def is_there(model: Path) -> bool:
    """Whether a model's folder has one."""
    return is_file(model / TURBO / CONFIG_FILE)


def find(checkpoint: Checkpoint) -> Adapter | None:
    """A model's own few-step adapter, checked against the model; None where it has none, or no DiT.

    Raises:
        CheckpointError: it is damaged, is for another model, or is not of that kind.
    """
    if not (is_there(checkpoint.path) and checkpoint.has("dit")):
        return None
    adapter = Adapter.open(checkpoint.path / TURBO)
    _check(adapter, checkpoint)
    return adapter


def _check(adapter: Adapter, checkpoint: Checkpoint) -> None:
    adapter.check(checkpoint)
    odd = ""
    if not adapter.drawing:
        odd = f"its {CONFIG_FILE} does not say with which options it draws ('drawing')"
    elif adapter.full or adapter.trained or set(adapter.low_rank) != {"dit"}:
        odd = "it holds more than low-rank updates of the dit"
    elif adapter.config is not None and adapter.config.dora:
        odd = "it is of DoRA, which changes the model's own weights"
    if odd:
        raise CheckpointError(
            f"'{adapter.path}' can't serve as speed turbo: {odd}; get another one, or move the folder away."
        )


def install(adapter: str | Path, model: str | Path) -> Path:
    """Writes a few-step adapter into the folder of the model that it was made for, in float16 as models are.

    Args:
        adapter: its folder, or a repository on the hub.
        model: the model's folder, which has none yet.

    Returns:
        the new folder.

    Raises:
        CheckpointError: it is damaged, is for another model, or is not of that kind.
        OutputError: the model has one already, or its folder can't be written.
    """
    checkpoint, found = Checkpoint.open(model), Adapter.open(adapter)
    _check(found, checkpoint)
    infos = {info.key: info for update in found.low_rank["dit"].values() for info in update.tensors}
    with atomic_folder(checkpoint.path / TURBO) as folder:
        tensors = {key: array.astype(mx.float16) for key, array in read_tensors(infos).items()}
        write_tensors(folder / WEIGHTS_FILE, tensors, made_for="pt")
        (folder / CONFIG_FILE).write_bytes(read_bytes(found.path / CONFIG_FILE, limit=_MOST_BYTES))
    return checkpoint.path / TURBO


def copy(adapter: Adapter, target: Path) -> None:
    """Writes a model's few-step adapter into another model's folder."""
    (target / TURBO).mkdir()
    for name in FILES:
        (target / TURBO / name).write_bytes(read_bytes(adapter.path / name, limit=_MOST_BYTES))
