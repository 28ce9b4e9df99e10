from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_settings_file(settings_file: Path) -> None:
    """For every test here."""
