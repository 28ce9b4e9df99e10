from __future__ import annotations

from pathlib import Path

import pytest
from processes.sitecustomize import device

from mobileo_mlx.ops import backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("metal")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of a test is a GPU; or it is a CPU that takes a GPU's forms."""
    if device() == "cpu":
        pytest.skip("set MOBILEO_TEST_DEVICE to gpu, or to forms for a GPU's forms on the CPU")
    if device() == "forms":
        monkeypatch.setattr(backend, "backend", lambda: "metal")
