"""Hostile input never ends in a traceback, a hang, or without memory: a few of each kind; `-m fuzz`: 20,000."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings

from .entries import ENTRIES, QUADRUPLET, Testbed, shard_members, use
from .inputs import INPUTS
from .limits import limited
from .outcome import ended, fault

TESTS = Path(__file__).parents[1]
ALL = 20_000
PATIENCE = 60  # seconds: only a hang is stopped here; the long run looks at time
QUICK = {"run-state": 4, "chat": 6, "options": 40, "image": 40, "json": 60, "tokenizer": 8, "tokenizer-files": 8}
# Shares of the long run; 1 where nothing is said.
SHARES = {"special": 0.5, "json": 2, "config": 2, "options": 2, "image": 3, "run-state": 0.4, "chat": 0.7}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    folder = tmp_path_factory.mktemp("fuzz")
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    return Testbed(folder)


def test_each_entry_has_inputs() -> None:
    assert ENTRIES.keys() == INPUTS.keys()


def whole_inputs(bed: Testbed) -> list[tuple[str, Any]]:
    """Of entries that use models, what they take as it is: without this all could be refused for one silly reason."""
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, data in shard_members(bed.photo).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    files: list[tuple[str, Path, str, bool]] = [
        ("config", bed.model, "config.json", False),
        ("config-quantized", bed.quantized, "config.json", False),
        ("config-upstream", bed.upstream, "diffusion/vae/config.json", True),
        ("index", bed.upstream, "model.safetensors.index.json", False),
        ("weights", bed.model, "mm_projector.safetensors", False),
        ("weights-upstream", bed.upstream, "model-00002-of-00002.safetensors", False),
        ("adapter", bed.adapter, "adapter_config.json", True),
        ("adapter-mlx-lm", bed.mlx_lm_adapter, "adapter_config.json", True),
        ("tokenizer", bed.model, "tokenizer.json", False),
        ("tokenizer-files", bed.tokenizer_files, "vocab.json", True),
        ("run-state", bed.run, "metrics.jsonl", True),
    ]
    read: list[tuple[str, Any]] = []
    for entry, folder, name, named in files:
        data = (folder / name).read_bytes()
        read.append((entry, (name, data) if named else data))
    return [
        *read,
        *(("replay", drawing) for drawing in bed.drawings.items()),
        ("lines", json.dumps(QUADRUPLET).encode()),
        ("lines", gzip.compress(json.dumps(QUADRUPLET).encode())),
        ("shard", shard.getvalue()),
        ("qna", "Q: what?\nA: this"),
        ("picture", bed.photo),
        ("precisions", "llm=8"),
        ("prompt", b"a cat"),
        ("chat", ["/image photo.png", "what?", "/generate a cat", "/edit it", "/save a.md"]),
    ]


def test_what_is_whole_is_used(bed: Testbed) -> None:
    for name, value in whole_inputs(bed):
        ended.clear()
        with bed.cleared():
            ENTRIES[name](bed, value)
            drawn = (bed.folder / "new.png").exists()
        assert 2 not in ended or name in ("replay", "precisions"), name  # these have something missing on purpose
        assert drawn == (name == "replay")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_few(bed: Testbed, name: str) -> None:
    @settings(
        max_examples=QUICK.get(name, 15),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(INPUTS[name](bed))
    def probe(value: Any) -> None:
        with bed.cleared(), limited(PATIENCE):
            assert not (problem := fault(lambda: ENTRIES[name](bed, value))), problem

    with bed.cleared():
        use(bed.model)  # imports and builds what the first use builds, before memory is limited
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
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
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
