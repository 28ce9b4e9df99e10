from collections.abc import Iterator
from pathlib import Path

import pytest

from mobileo_mlx.ops import device_settings


@pytest.fixture(autouse=True)
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of its own for what the doctor stores; it is not there yet."""
    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path / "cache"))
    device_settings._entries.cache_clear()
    yield device_settings.path()
    device_settings._entries.cache_clear()
