"""All stages of the small model's training, a few steps each: what comes out is a model that draws and answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shapes.questions import QUESTION_TYPES
from benchmarks.shapes.recipe import curriculum, train
from benchmarks.shapes.recipe.tiny import GRID, SIDE, tiny_config, tiny_tokenizer
from benchmarks.shapes.text import sample_caption, vocabulary
from benchmarks.shapes.world import Object, Scene
from mobileo_mlx import MobileO
from mobileo_mlx.errors import CheckpointError
from mobileo_mlx.prompts import encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import Tokenizer
from tests.benchmarks.short_runs import short_runs


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return short_runs(train, tmp_path_factory.mktemp("workspace"), POOL=(16, 8))


def test_the_exported_model_runs(workspace):
    model = MobileO.load(workspace / "model")
    result = model.generate("a red star", steps=2)
    assert result.images[0].size == (SIDE, SIDE)
    assert isinstance(model.ask(result.images[0], "what color is the star?", max_tokens=4).text, str)
    assert model.edit(result.images[0], "make the star blue", steps=2).images[0].size == (SIDE, SIDE)
    # The encoder halves the image at once, which the published one does not.
    assert model.edit(result.images[0], "make the star blue", steps=4, strength=0.7).images[0].size == (SIDE, SIDE)


def test_the_log_of_the_training_is_kept_beside_the_model(workspace):
    lines = (workspace / "model" / "training.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(entry["stage"], entry["step"]) for entry in entries] == [
        (name, i) for name in train.STAGES for i in (1, 4)
    ]
    assert all(np.isfinite(entry["loss"]) for entry in entries)


def test_a_stage_needs_those_before_it(tmp_path):
    with pytest.raises(CheckpointError, match="run it first"):
        list(train.recipe(tmp_path).run(train.STAGES["drawing"]))


def test_every_word_is_one_token(tokenizer):
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in vocabulary())
    ids = encode_prompt(tokenizer, generate_prompt("a red star"))
    assert len(ids) == 14  # eleven for the template
    assert tokenizer.vocab_size <= 512


def test_symbols_say_what_is_where(tokenizer):
    scene = Scene((Object("star", "red", 2, 4),), "gray")
    grid = curriculum.symbols(scene, tokenizer).reshape(GRID, GRID, 4)
    word = {text: tokenizer.encode(text)[0] for text in (" red", " star", " gray", "A", "D", "E", "H")}
    covered = np.zeros((GRID, GRID), bool)
    covered[1:3, 0:2] = True  # an object covers 2 x 2 cells
    assert (grid[covered][:, :2] == [word[" red"], word[" star"]]).all()
    assert (grid[~covered][:, :2] == word[" gray"]).all()
    assert (grid[0, :, 2] == word["A"]).all()
    assert (grid[3, :, 2] == word["D"]).all()
    assert (grid[:, 0, 3] == word["E"]).all()
    assert (grid[:, 3, 3] == word["H"]).all()


def test_the_model_is_small(tokenizer):
    from mlx.utils import tree_flatten

    from mobileo_mlx.models.mobileo import COMPONENTS, build

    config = tiny_config(tokenizer.vocab_size, (0,))
    sizes = [v.size for name in COMPONENTS for _, v in tree_flatten(build(name, config).parameters())]
    assert sum(sizes) < 7_500_000  # 15 MB in float16


def test_batches_hold_the_prompts_of_captions(tokenizer):
    sequences = curriculum.CURRICULUM.captions(np.random.default_rng(0), tokenizer, 3)
    rng = np.random.default_rng(0)
    expected = [encode_prompt(tokenizer, generate_prompt(sample_caption(rng).text)) for _ in range(3)]
    for row, mask, ids in zip(sequences.ids, sequences.mask, expected, strict=True):
        assert row[mask].tolist() == ids


def test_the_curriculum_ends_with_all_kinds():
    assert set(curriculum.CURRICULUM.kinds_at(0)) == {"colour", "shape"}
    assert set(curriculum.CURRICULUM.kinds_at(1)) == set(QUESTION_TYPES)
    only = replace(curriculum.CURRICULUM, phases=((1.0, ("background",)),))
    asked = only.questions(np.random.default_rng(0), Tokenizer(tiny_tokenizer()), 20)
    names = {scene.background for scene in asked.seen}
    assert len(names) > 1  # the kind that was asked for, on scenes that suit it
