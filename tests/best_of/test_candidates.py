"""Which candidates are drawn and kept, by a judge whose verdicts are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mobileo_mlx import MobileO
from mobileo_mlx.best_of import candidates
from mobileo_mlx.best_of.candidates import candidate_seed
from mobileo_mlx.best_of.judge import Judgement
from mobileo_mlx.diffusion import GenerationStep
from mobileo_mlx.errors import OptionError
from mobileo_mlx.results import GenerationResult, read_recorded

FAST = {"steps": 2, "guidance_scale": 1.0, "width": 32, "height": 32}


class MadeUpJudge:
    """Gives the scores of a list in turn; those from 0.5 on pass."""

    scores: tuple[float, ...] | list[float] = ()

    def __init__(self, *_given, **_named) -> None:
        self._left = list(self.scores)

    def of(self, images) -> list[Judgement]:
        scores = [self._left.pop(0) for _ in images]
        return [Judgement(score, score >= 0.5, ()) for score in scores]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> type[MadeUpJudge]:
    monkeypatch.setattr(candidates, "Judge", MadeUpJudge)
    return MadeUpJudge


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "staged"])
def model(request: pytest.FixtureRequest) -> MobileO:
    return MobileO.load("tiny", keep_loaded=request.param)


def test_seeds_of_candidates() -> None:
    assert candidate_seed(7, 0) == 7
    assert candidate_seed(7, 3) == 7 + 3 * 2**32
    assert candidate_seed(2**64 - 1, 1) == 2**32 - 1


def test_the_kept_one_is_what_its_seed_draws(model: MobileO, judged: type[MadeUpJudge]) -> None:
    judged.scores = [0.1, 0.2, 0.4, 0.3, 0.1, 0.2]  # candidate by candidate, of two seeds
    result = model.generate("a star", seed=[5, 6], best_of=3, **FAST)
    assert result.seeds == [candidate_seed(5, 1), candidate_seed(6, 1)]
    assert [[one["score"] for one in said["candidates"]] for said in result.best_of] == [
        [0.1, 0.4, 0.1],
        [0.2, 0.3, 0.2],
    ]
    alone = model.generate("a star", seed=result.seeds[1], **FAST)
    difference = np.asarray(alone.images[0], int) - np.asarray(result.images[1], int)
    assert np.abs(difference).max() <= 2
    assert alone.best_of == ()
    assert "best_of" not in alone.metadata()


def test_the_first_that_passes_ends_it(model: MobileO, judged: type[MadeUpJudge]) -> None:
    # Of the first seed the second candidate passes, of the other one none.
    judged.scores = [0.1, 0.2, 0.6, 0.4, 0.3]
    *steps, result = model.stream_generate("a star", seed=[5, 6], best_of=3, until_pass=True, **FAST)
    assert isinstance(result, GenerationResult)
    assert [len(said["candidates"]) for said in result.best_of] == [2, 3]
    assert result.seeds == [candidate_seed(5, 1), candidate_seed(6, 1)]
    assert [(step.step, step.steps) for step in steps] == [(i, 6) for i in range(1, 7)]
    assert [len(step.denoised) for step in steps] == [2, 2, 2, 2, 1, 1]
    judged.scores = [0.9]
    *steps, result = model.stream_generate("a star", seed=5, best_of=3, until_pass=True, **FAST)
    assert result.seeds == [5]
    assert [step.step for step in steps] == [1, 2]


def test_large_numbers_are_drawn_in_batches(judged: type[MadeUpJudge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_MOST_AT_ONCE", 2)
    judged.scores = [0.1, 0.2, 0.3, 0.4, 0.3]
    *steps, result = MobileO.load("tiny", keep_loaded=False).stream_generate("a star", seed=1, best_of=5, **FAST)
    assert [(step.step, step.steps) for step in steps] == [(i, 6) for i in range(1, 7)]
    assert all(isinstance(step, GenerationStep) and step.denoised.shape[0] == 1 for step in steps)
    assert result.seeds == [candidate_seed(1, 3)]
    assert {"encode", "denoise", "decode", "judge"} == result.timings.keys()


def test_weights_are_read_once_a_phase() -> None:
    model = MobileO.load("tiny", keep_loaded=False)
    phases: list[str] = []
    model.parts.on_phase = phases.append
    model.generate("a star", seed=1, best_of=3, **FAST)
    changes = [phase for i, phase in enumerate(phases) if phase != phases[i - 1] or i == 0]
    assert changes == ["condition", "denoise", "decode", "vision", "answer"]


def test_a_picture_is_drawn_again_without_its_candidates(tmp_path: Path) -> None:
    from mobileo_mlx.image_settings import save_png

    model = MobileO.load("tiny")
    result = model.generate("two red stars", seed=3, best_of=2, **{**FAST, "steps": 3})
    save_png(result.images[0], tmp_path / "a.png", result.metadata())
    recorded = read_recorded(tmp_path / "a.png", "generate")
    assert recorded.seed == result.seeds[0]
    assert not recorded.options.keys() & {"best_of", "until_pass"}
    said = recorded.metadata["best_of"]
    assert [one["seed"] for one in said["candidates"]] == [3, candidate_seed(3, 1)]
    assert {"question", "expected", "answer", "probability"} == said["checks"][0].keys()
    assert all(0 <= one["score"] <= 1 for one in said["candidates"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until_pass": True}, "until pass stops among several candidates; give best of 2 or more, too"),
        ({"until_pass": 1}, "until pass 1 is not possible; choose true or false"),
        ({"best_of": 0}, "best of 0 is not possible; choose 1 to 100"),
        ({"best_of": True}, "best of True is not possible; choose a whole number"),
    ],
)
def test_what_is_no_number_of_candidates(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MobileO.load("tiny").generate("a star", **options)
