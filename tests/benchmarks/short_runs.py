"""A recipe's stages, a few steps each."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.recipes.stages import Stage


def short_runs(train: ModuleType, folder: Path, **changes: Any) -> Path:
    """Runs every stage for four steps with small batches and exports the model.

    Args:
        train: the recipe's module, with `STAGES` and `recipe`.
        folder: of the stages.
        changes: other names of the module with what they are to be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "STAGES", {name: _short(stage) for name, stage in train.STAGES.items()})
        for name, value in changes.items():
            patch.setattr(train, name, value)
        recipe = train.recipe(folder)
        for stage in train.STAGES.values():
            reports = list(recipe.run(stage))
            assert [report.step for report in reports] == [1, 2, 3, 4]
            assert not list(recipe.run(stage))  # done: nothing is left to run
        recipe.export(folder / "model")
    return folder


def _short(stage: Stage) -> Stage:
    sizes = {name: min(2, getattr(stage, name)) for name in ("captions", "edits", "questions", "pictures")}
    return replace(stage, steps=4, parts=min(2, stage.parts), **sizes)
