"""Loaded by Dask's workers in tests (`distributed.worker.preload`): the fake model, and what the environment asks for.

FAKE_LOG is the log of `FakeModel`, FAKE_WEIGHTS what tells its model from others, FAKE_VERSION the version of this
package that the worker says it has. This folder is on PYTHONPATH.
"""

import os
from pathlib import Path
from typing import Any

from faking import FakeModel

from mobileo_mlx.batch import dask

_MODEL = FakeModel(Path(os.environ["FAKE_LOG"]))


def load_model(loading: Any) -> Any:
    """Instead of that of `dask.py`."""
    return _MODEL, {"weights": os.environ.get("FAKE_WEIGHTS", "fake")}


dask.load_model = load_model
dask.__version__ = os.environ.get("FAKE_VERSION", dask.__version__)
