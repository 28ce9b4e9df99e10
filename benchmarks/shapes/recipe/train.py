"""How the bundled model `tiny` was made: trained from random weights in six stages, each of which can be resumed.

autoencoder  DC-AE on images.
decoder      its decoder alone, on images that show the colours and shapes of later finetuning too; the latent space is
             fixed from here on.
questions    the language model and its head, on questions about scenes. Token embeddings that name what each cell of a
             scene holds (`curriculum.symbols`) stand for the image features.
vision       the vision tower and the projector, towards these embeddings.
drawing      the language model, the connector and the DiT, on captions, and on edits and questions with those
             embeddings as image features.
joint        everything but the autoencoder, on the same, with the vision tower's own features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from benchmarks.recipes.losses import AUTOENCODER, StageModel, feature_loss, question_loss, see, trained, vision_model
from benchmarks.recipes.mixture import LatentPool, latent_pool, mixed_batches, mixed_loss
from benchmarks.recipes.stages import Batch, Recipe, Setup, Stage
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.tokenizer import Tokenizer

from ..world import WORLD, Scene, render_batch
from . import autoencoder
from .autoencoder import any_scene
from .curriculum import CURRICULUM
from .symbols import symbol_features, symbol_ids
from .tiny import SIDE, tiny_config, tiny_tokenizer

SHIFT = 6.0  # of the noise levels, as in sampling: the layout is decided at high noise

STAGES = {
    stage.name: stage
    for stage in (
        Stage("autoencoder", 2000, 2, pictures=16, learning_rate=3e-3, seed=0),
        Stage("decoder", 1000, pictures=16, learning_rate=1e-3, seed=5),
        Stage("questions", 2500, 2, questions=64, learning_rate=1e-3, decay=0.2, seed=1),
        Stage("vision", 1800, pictures=64, learning_rate=1e-3, seed=2),
        Stage("drawing", 3600, 3, captions=20, edits=8, questions=8, learning_rate=2e-3, decay=0.35, ema=0.999, seed=3),
        Stage("joint", 1000, 3, captions=24, edits=8, questions=8, learning_rate=3e-4, ema=0.99, seed=4),
    )
}
POOL = (40_000, 20_000)  # captions and edits with their latents


def recipe(folder: Path, workers: int = 0) -> Recipe:
    """The stages in `folder`; for `workers` see `ahead`."""
    tokenizer = Tokenizer(tiny_tokenizer())
    end = [tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config = tiny_config(tokenizer.vocab_size, tuple(i for i in end if i is not None))
    sources = dict.fromkeys(COMPONENTS, "joint")
    sources |= {"vae_encoder": "autoencoder", "vae_decoder": "decoder"}
    return Recipe(folder, config, tokenizer, STAGES, _SETUPS, sources, workers)


def _autoencoder(recipe: Recipe, stage: Stage) -> Setup:
    def batches(step: int, part: int) -> Batch:
        return autoencoder.batch(stage.seed, stage.pictures, step, part)

    return Setup(StageModel(recipe.config, *AUTOENCODER), batches, autoencoder.loss)


def _decoder(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = trained(recipe, "autoencoder", *AUTOENCODER)
    model.vae_encoder.freeze()

    def batches(step: int, part: int) -> Batch:
        world = autoencoder.WIDE if step % 2 else WORLD
        return autoencoder.batch(stage.seed, stage.pictures, step, part, world=world)

    return Setup(model, batches, autoencoder.loss)


def _questions(recipe: Recipe, stage: Stage) -> Setup:
    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        sequences = CURRICULUM.questions(rng, recipe.tokenizer, stage.questions, step / stage.steps)
        return {
            **sequences.arrays(),
            "symbols": symbol_ids(sequences.seen, recipe.tokenizer),
        }

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict]:
        return question_loss(model, batch, symbol_features(model, batch["symbols"])), {}

    return Setup(StageModel(recipe.config, "llm", "lm_head"), batches, loss)


def _vision(recipe: Recipe, stage: Stage) -> Setup:
    words = dict(recipe.weights("questions", "llm"))["llm.embed_tokens.weight"]
    sample = [any_scene(np.random.default_rng(i)) for i in range(300)]
    used = mx.array(np.unique(symbol_ids(sample, recipe.tokenizer)))

    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        scenes = [any_scene(rng) for _ in range(stage.pictures)]
        return {"pixels": pixels(scenes), "symbols": symbol_ids(scenes, recipe.tokenizer)}

    def target(symbols: mx.array) -> mx.array:
        return words[symbols].sum(axis=2)

    model = vision_model(recipe.config, mx.array(pixels(sample[:64])))
    return Setup(model, batches, feature_loss(target, words[used].std()))


def _drawing(recipe: Recipe, stage: Stage) -> Setup:
    model = StageModel(recipe.config, "llm", "lm_head", "diffusion_connector", "dit")
    model.update(tree_unflatten(recipe.weights("questions", "llm", "lm_head")))
    # The vision tower is trained towards these embeddings.
    model.llm.embed_tokens.freeze()  # type: ignore[attr-defined]
    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), lambda scenes: symbol_ids(scenes, recipe.tokenizer)),
        mixed_loss(stage, symbol_features, shift=SHIFT),
    )


def _joint(recipe: Recipe, stage: Stage) -> Setup:
    names = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")
    model = StageModel(recipe.config, *names)
    model.update(tree_unflatten(recipe.weights("vision", *names[:2])))
    model.update(tree_unflatten(recipe.weights("drawing", *names[2:])))

    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), pixels),
        mixed_loss(stage, see, shift=SHIFT),
    )


_SETUPS: dict[str, Callable[[Recipe, Stage], Setup]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "questions": _questions,
    "vision": _vision,
    "drawing": _drawing,
    "joint": _joint,
}


def _pool(recipe: Recipe) -> LatentPool:
    return latent_pool(recipe, CURRICULUM, POOL, pixels)


def pixels(scenes: Sequence[Scene]) -> np.ndarray:
    """(B, SIDE, SIDE, 3) uint8."""
    return render_batch(scenes, SIDE)
