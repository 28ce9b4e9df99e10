"""The networks of a model: what is in memory in which phase, and when cached arrays still hold."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.models.qwen2 import Qwen2Model
from mobileo_mlx.parts import PHASES, Parts
from mobileo_mlx.pipeline import MobileO


@pytest.fixture
def checkpoint(tiny_model: Path) -> Checkpoint:
    return Checkpoint.open(tiny_model)


def test_every_network_belongs_to_a_phase() -> None:
    assert {name for names in PHASES.values() for name in names} == set(COMPONENTS)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_frees_what_it_does_not_need(checkpoint: Checkpoint, phase: str) -> None:
    parts = Parts(checkpoint, keep_loaded=False)
    for name in COMPONENTS:
        assert parts[name] is parts[name]
    parts.enter(phase)
    assert parts.loaded == set(PHASES[phase])


def test_what_is_kept_stays(checkpoint: Checkpoint) -> None:
    parts = Parts(checkpoint)
    llm = parts.llm
    for phase in PHASES:
        parts.enter(phase)
    assert isinstance(llm, Qwen2Model)
    assert parts.llm is llm
    parts.release()
    assert not parts.loaded


def test_a_staged_drawing_leaves_no_half_of_a_network(tiny_model: Path) -> None:
    """It gives up weights on the way; whoever asks for the network meanwhile gets a whole one."""
    model = MobileO.load(tiny_model, keep_loaded=False)
    steps = model.stream_generate("a cat", steps=3, seed=1)
    next(steps)
    assert "dit" not in model.parts.loaded
    assert "to_k" in model.parts.dit.transformer_blocks[0].attn2
    steps.close()
    whole = MobileO.load(tiny_model).generate("a cat", steps=3, seed=1)
    assert mx.array_equal(model.generate("a cat", steps=3, seed=1).latents, whole.latents)


def test_phases_can_be_watched(tiny_model: Path) -> None:
    model = MobileO.load(tiny_model)
    seen: list[str] = []
    model.parts.on_phase = seen.append
    model.generate("a cat", steps=1)
    assert seen == ["condition", "denoise", "decode"]


def test_a_network_is_loaded_once_by_however_many_threads(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, found, network = Parts(checkpoint), [], Checkpoint.network

    def slow(self: Checkpoint, name: str) -> Any:
        time.sleep(0.05)  # long enough for the others to ask meanwhile
        return network(self, name)

    monkeypatch.setattr(Checkpoint, "network", slow)
    threads = [threading.Thread(target=lambda: found.append(parts.mm_projector)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(network) for network in found}) == 1


def test_cached_arrays_hold_as_long_as_the_weights_are_the_same(checkpoint: Checkpoint) -> None:
    parts, calls = Parts(checkpoint), []

    def compute() -> list[mx.array]:
        calls.append(parts.mm_projector)
        return [mx.ones(3)]

    def cached(names: tuple[str, ...] = ("mm_projector",)) -> int:
        parts.cached("key", names, compute)
        return len(calls)

    assert [cached(), cached()] == [1, 1]
    assert cached(("mm_projector", "llm")) == 2  # made with other networks, it is another thing
    projector = parts.mm_projector
    projector.update(tree_map(lambda weight: weight + 1, projector.parameters()))  # as an optimizer does
    assert [cached(), cached()] == [3, 3]
    parts.release("mm_projector")
    assert [cached(), cached()] == [4, 4]


def test_nothing_is_cached_where_nothing_is_kept(checkpoint: Checkpoint) -> None:
    parts = Parts(checkpoint, keep_loaded=False)
    parts.cached("key", ("llm",), lambda: [mx.ones(3)])
    assert parts.find("key", ("llm",)) is None
    assert parts.cache.nbytes == 0


def test_the_cache_keeps_no_old_weights(checkpoint: Checkpoint) -> None:
    """What training has replaced is freed, though the version remembers which arrays there were."""
    parts = Parts(checkpoint)
    projector = parts.mm_projector
    mx.eval(projector.parameters())
    parts.cached("key", ("mm_projector",), lambda: [mx.ones(3)])
    before = mx.get_active_memory()
    for _ in range(3):
        projector.update(tree_map(lambda weight: weight * 2, projector.parameters()))
        mx.eval(projector.parameters())
    assert mx.get_active_memory() <= before
