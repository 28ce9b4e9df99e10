"""Claims: one process a chunk, and what is known of those that died."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mobileo_mlx.batch import claims as module
from mobileo_mlx.batch.claims import FOLDER, Claims

DYING = """
import os, sys
from pathlib import Path
from mobileo_mlx.batch.claims import Claims
Claims(Path(sys.argv[1])).take(3).started(int(sys.argv[2]))
os.kill(os.getpid(), 9)
"""


def test_one_has_it(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    claim = mine.take(3)
    assert claim is not None
    assert other.take(3) is None
    another = other.take(4)
    assert another is not None
    claim.release(finished=True)
    again = other.take(3)
    assert again is not None
    again.release(finished=True)
    another.release(finished=False)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_lines_that_processes_die_with_are_counted(tmp_path: Path) -> None:
    for line in (61, 61, 62):
        subprocess.run([sys.executable, "-c", DYING, str(tmp_path), str(line)], check=False)
    for _ in range(2):  # giving it back keeps what is known
        claim = Claims(tmp_path).take(3)
        assert claim is not None
        assert claim.deaths == {61: 2, 62: 1}
        claim.started(70)
        claim.release(finished=False)
    claims = Claims(tmp_path)
    claims.forget()
    claim = claims.take(3)
    assert claim is not None
    assert claim.deaths == {}


def test_a_damaged_claim_is_an_empty_one(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    for text in (b"{", b"[]", b'{"deaths": 1}', b'{"deaths": {"a": 1}}', b"\xff"):
        (tmp_path / FOLDER / "3.json").write_bytes(text)
        claim = claims.take(3)
        assert claim is not None
        assert claim.deaths == {}
        claim.release(finished=True)


def test_without_locks_everything_can_be_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lock", lambda descriptor: None)
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.locks is False
    first, second = mine.take(3), other.take(3)
    assert first is not None
    assert second is not None
    first.started(61)
    first.release(finished=False)
    second.release(finished=True)
