"""All stages of the training of `emoji`, a few steps each: what comes out is a model that draws and answers."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.emoji.recipe import train
from benchmarks.emoji.recipe.curriculum import CURRICULUM
from benchmarks.emoji.recipe.tokenizer import emoji_tokenizer
from benchmarks.emoji.world import SIDE
from benchmarks.recipes.losses import StageModel, embedded
from benchmarks.recipes.stages import on_device
from mobileo_mlx import MobileO
from mobileo_mlx.conditioning import embed_prompts
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX
from mobileo_mlx.tokenizer import Tokenizer
from tests.benchmarks.short_runs import short_runs


@pytest.fixture(scope="module")
def workspace(made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_runs(train, tmp_path_factory.mktemp("workspace"), POOL=(12, 6))


def test_the_exported_model_runs(workspace: Path) -> None:
    model = MobileO.load(workspace / "model")
    image = model.generate("a red apple", steps=2).images[0]
    assert image.size == (SIDE, SIDE)
    assert isinstance(model.ask(image, "what is it?", max_tokens=4).text, str)
    assert model.edit(image, "make the background blue", steps=2).images[0].size == (SIDE, SIDE)


def test_training_reads_what_inference_reads(made_up: Path) -> None:
    tokenizer = Tokenizer(emoji_tokenizer())
    asked = CURRICULUM.questions(np.random.default_rng(1), tokenizer, 5)
    model = StageModel(train.recipe(Path()).config, "llm")
    features = mx.random.normal((5, 16, model.llm.norm.weight.size), key=mx.random.key(0))
    expected = embed_prompts(
        model.llm.embed_tokens, asked.ids, list(features), attention_mask=asked.mask, labels=asked.labels
    )
    batch = on_device(asked.arrays())
    embeddings, mask = embedded(model, batch, features)
    width = expected.attention_mask.shape[1]
    assert (asked.ids == IMAGE_TOKEN_INDEX).any()
    assert mx.array_equal(embeddings[:, :width], expected.inputs_embeds)
    assert not embeddings[:, width:].any()
    assert (np.array(mask[:, :width]) == expected.attention_mask).all()
    # Each id of an answer is predicted from the position before it.
    assert expected.labels is not None
    counts = np.array(batch["weight"]) == 1
    rows, columns = np.array(batch["row"])[counts], np.array(batch["column"])[counts] + 16 - 1
    assert (expected.labels[rows, columns + 1] == np.array(batch["answer"])[counts]).all()
    assert counts.sum() == (expected.labels >= 0).sum()
