"""Hostile input never ends in a traceback, a hang, or without memory: a few of each kind; `-m fuzz`: 20,000."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings

from .entries import ENTRIES, Room, use
from .inputs import INPUTS
from .limits import limited
from .outcome import fault

TESTS = Path(__file__).parents[1]
ALL = 20_000
PATIENCE = 60  # seconds: only a hang is stopped here; the long run looks at time
QUICK = {"run-state": 4, "chat": 6, "options": 40, "image": 40, "json": 60, "tokenizer": 8, "tokenizer-files": 8}
# Shares of the long run; 1 where nothing is said.
SHARES = {"json": 2, "config": 2, "options": 2, "image": 3, "run-state": 0.4, "chat": 0.7}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("fuzz")
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    return Room(folder)


def test_each_entry_has_inputs() -> None:
    assert ENTRIES.keys() == INPUTS.keys()


@pytest.mark.parametrize("name", ENTRIES)
def test_a_few(room: Room, name: str) -> None:
    @settings(
        max_examples=QUICK.get(name, 15),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(INPUTS[name](room))
    def probe(value: Any) -> None:
        with room.cleared(), limited(PATIENCE):
            assert not (problem := fault(lambda: ENTRIES[name](room, value))), problem

    with room.cleared():
        use(room.model)  # imports and builds what the first use builds, before memory is limited
    probe()


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ENTRIES)
def test_many(tmp_path: Path, name: str) -> None:
    shares = {entry: SHARES.get(entry, 1) for entry in ENTRIES}
    count = round(int(os.environ.get("MOBILEO_FUZZ_INPUTS", ALL)) * shares[name] / sum(shares.values()))
    seed = os.environ.get("MOBILEO_FUZZ_SEED", "0")
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", name, str(count), seed, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=TESTS,
        capture_output=True,
        text=True,
        errors="replace",
    )
    report = tmp_path / "report.json"
    if not report.exists():
        last = tmp_path / "last"
        pytest.fail(f"status {done.returncode} with {last.exists() and last.read_text()[:2000]}\n{done.stderr[-3000:]}")
    found = json.loads(report.read_text())
    print(f"{name}: {found['inputs']} inputs, {found['seconds']:.1f} s and {found['peak'] / 1e6:.0f} MB at most")
    lines = [f"{problem}  ({times}x)\n    {text[:1500]}" for problem, (times, text) in found["found"].items()]
    assert not lines, "\n".join(lines)
