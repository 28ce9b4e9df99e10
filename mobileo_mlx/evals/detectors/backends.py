"""Detectors by name: what `mobileo-mlx eval geneval-score --backend` takes."""

from __future__ import annotations

import importlib
from pathlib import Path

from ...errors import OptionError
from ..detections import Detector


def load_backend(name: str, *, weights: Path | None = None) -> Detector:
    """A detector.

    Args:
        name: `package.module:name`, a callable without arguments that gives a detector.
        weights: the folder with the networks' weights, for those that have any.

    Raises:
        OptionError: there is no such detector.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise OptionError(f"there is no detector '{name}'; give one as package.module:name.")
    if weights is not None:
        raise OptionError(f"'{name}' takes no weights; leave them out.")
    return _load_callable(name, module, attribute)


def _load_callable(name: str, module: str, attribute: str) -> Detector:
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"there is no detector '{name}' ({error}); see that Python finds the module.") from error
    if not callable(make):
        raise OptionError(f"'{name}' can't be called; name a class, or a function that gives a detector.")
    return make()  # type: ignore[no-any-return]
