"""The weights of detectors: all that is missing, unexpected or of another shape is listed, then raised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ...checkpoints.tensor_files import TensorInfo, check_dtypes
from ...errors import CheckpointError, format_names


def check_tensors(
    source: Path,
    network: str,
    found: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> dict[str, TensorInfo]:
    """What is expected of what was found, when all is there.

    Args:
        source: the file or folder, for the error.
        network: its name, for the error.
        found: by name.
        expected: shapes by name.
        ignored: names that may be there, and are not used.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape, or of a type that is not of weights.
    """
    odd = {name: (found[name].shape, shape) for name, shape in expected.items() if name in found}
    kinds = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys() - set(ignored),
        "of another shape": {
            f"{name} ({was} instead of {shape})" for name, (was, shape) in odd.items() if was != shape
        },
    }
    listed = [f"{kind}: {format_names(names)}" for kind, names in kinds.items() if names]
    if listed:
        raise CheckpointError(f"'{source}' does not fit {network} ({'; '.join(listed)}); download its weights again.")
    chosen = {name: found[name] for name in expected}
    check_dtypes(source, chosen)
    return chosen
