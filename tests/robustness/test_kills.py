"""Processes that are ended at any moment: what is finished is whole, and nothing unfinished stays."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .places import Place

KILLS = 25  # of each command
GROWING = ("metrics.jsonl", "loss.png")  # of a training, while it goes on
TOGETHER = 5  # kills of one training, before it may end


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "convert", "fuse"])
def test_killed_while_it_writes(place: Callable[..., Place], command: str) -> None:
    """Every file that is there is the one that an undisturbed run writes, and the next run leaves nothing else."""
    expected, here = reference(place, command), place(command)
    chance = random.Random(command)
    kills = 0
    while kills < KILLS:
        status = here.strike(chance.randint(1, expected.changes), chance.uniform(0, 0.03), signal.SIGKILL)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        found, whole = here.files(), expected.files()
        assert found.items() <= whole.items()
        if here.target and found:
            assert found == whole
            shutil.rmtree(here.folder / here.target)
        assert here.run().returncode == 0
        assert here.files() == whole
        assert here.unfinished() == []
        shutil.rmtree(here.folder)


@pytest.mark.slow
def test_training_that_is_killed_again_and_again(place: Callable[..., Place]) -> None:
    """Losses, checkpoints, pictures and the adapter are those of an undisturbed run."""
    expected = reference(place, "finetune")
    whole = expected.files()
    chance = random.Random("finetune")
    for _ in range(KILLS // TOGETHER):
        here = place("finetune")
        kills = 0
        while kills < TOGETHER:
            change = chance.randint(1, expected.changes - 5)
            status = here.strike(change, chance.uniform(0, 0.05), signal.SIGKILL)
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
            for name, content in here.files().items():
                if name in whole and Path(name).name not in GROWING:
                    assert content == whole[name], name
            if status == 0:
                shutil.rmtree(here.folder)
        assert here.run().returncode == 0
        assert here.files() == whole
        assert here.unfinished() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["generate", "convert", "fuse", "random-model", "finetune"])
def test_asked_to_end(place: Callable[..., Place], command: str, number: int) -> None:
    """Nothing unfinished is left at once, with no further run."""
    expected = reference(place, command)
    chance = random.Random(f"{command} {number}")
    for _ in range(4):
        here = place(command)
        status = here.strike(chance.randint(1, expected.changes), chance.uniform(0, 0.01), number)
        assert status in (0, 130, 128 + number)
        assert here.unfinished() == []
        if command != "finetune":
            assert here.files().items() <= expected.files().items()


def reference(place: Callable[..., Place], command: str) -> Place:
    """A place where the command has run undisturbed."""
    expected = place(command)
    done = expected.run()
    assert done.returncode == 0, done.stderr
    assert expected.changes > 0
    assert expected.unfinished() == []
    return expected
