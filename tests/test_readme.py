"""What the README shows is what runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader stands; the examples leave their images here, in turn."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_python_example(index: int, folder: Path):
    subprocess.run([sys.executable, "-c", EXAMPLES[index]], cwd=folder, check=True, timeout=120)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


def test_ci_runs_the_command_that_the_readme_gives():
    command = next(line for line in README.splitlines() if line.endswith("pytest"))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
