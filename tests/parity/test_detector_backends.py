"""Both backends of GenEval's scorer, with the same small random weights: the same objects and the same colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_clip import write_clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.mask2former import modeling_mask2former  # noqa: E402

from mobileo_mlx.evals.detectors.backends import mlx_backend, transformers_backend  # noqa: E402
from mobileo_mlx.evals.detectors.weights_files import find_files  # noqa: E402

from .common import randomised  # noqa: E402
from .test_mask2former import TINY, Loss, theirs_of  # noqa: E402

CONFIG = replace(TINY, classes=80)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setattr(modeling_mask2former, "Mask2FormerLoss", Loss)
    network = randomised(transformers.Mask2FormerForUniversalSegmentation(theirs_of(CONFIG)))
    with torch.no_grad():
        network.class_predictor.weight *= 5  # some classes are sure
    network.save_pretrained(tmp_path / "mask2former")
    write_clip(tmp_path / "clip")
    files = find_files(tmp_path, folders=True)
    return mlx_backend(files, CONFIG), transformers_backend(files)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.parametrize("size", [(96, 64), (50, 90)])
def test_objects_and_colours(both: tuple[Any, Any], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from mobileo_mlx.evals.detectors import instances

    monkeypatch.setattr(instances, "MAX_SHORT", 128)  # else a picture has a million pixels
    ours, theirs = both
    image = picture(*size)
    found, expected = ours.detect(image), theirs.detect(image)
    assert len(found) == len(expected) == instances.MAX_OBJECTS
    assert [one.name for one in found] == [one.name for one in expected]
    assert len({one.name for one in found}) > 5
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.mask != other.mask).mean() < 0.01
    seen = [one for one in expected if one.score > 0][:40]
    logits, reference = ours.classifier.logits(image, seen), theirs.classifier.logits(image, seen)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-3)
    assert np.ptp(reference) > 1
    assert np.ptp(reference, axis=0).max() > 0.1
    assert ours.colours(image, seen) == theirs.colours(image, seen)


def test_reports_say_that_the_weights_are_not_the_official_ones(both: tuple[Any, Any]) -> None:
    for backend in both:
        assert "not the official weights" in " ".join(backend.notes)
    assert both[0].identity == both[1].identity != ""
