"""Digests that tell one set of weights from another without reading all of them."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..files import open_input, parse_json
from .adapters import Adapter

_PIECE = 1024  # bytes
_PIECES = 8  # of one tensor; a smaller one is read whole


def weights_digest(files: Iterable[Path]) -> str:
    """A digest of safetensors files: of their headers, and of pieces of each tensor that are spread over it.

    Training changes a tensor everywhere, and so does whatever else makes another model of the same shapes.

    Raises:
        CheckpointError: a file can't be read.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        with open_input(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(length)
            digest.update(header)
            for name, entry in parse_json(header).items():
                if name != "__metadata__":
                    for piece in _pieces(file, *(8 + length + offset for offset in entry["data_offsets"])):
                        digest.update(piece)
    return digest.hexdigest()


def adapter_digest(adapter: Adapter) -> str:
    """The same of the files of an adapter, for the adapter that a run starts from."""
    updates = [update for found in adapter.low_rank.values() for update in found.values()]
    infos = [info for update in updates for info in (update.a, update.b)]
    infos += [info for part in (adapter.full, adapter.trained) for found in part.values() for info in found.values()]
    return weights_digest({info.file for info in infos})


def _pieces(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """What lies between two places, or pieces of it, the first and the last bytes among them."""
    whole = end - begin <= _PIECE * _PIECES
    for i in range(1 if whole else _PIECES):
        offset = begin + (end - begin - _PIECE) * i // (_PIECES - 1)
        yield os.pread(file.fileno(), end - begin if whole else _PIECE, offset)
