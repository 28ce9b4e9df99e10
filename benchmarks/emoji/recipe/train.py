"""How the bundled model `emoji` was made: trained from random weights in stages, each of which can be resumed.

autoencoder  DC-AE on scenes; the latent space is fixed from here on.
names        token embeddings, the connector and the DiT, on captions of one thing. The language model's layers are left
             out: before the embeddings say something they only blur them, and no name is learned.
drawing      the language model and its head, the connector and the DiT, on captions, and on edits and questions with
             `symbols` as image features.
vision       the vision tower and the projector, towards these symbols.
joint        everything but the autoencoder, on the same, with the vision tower's own features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from benchmarks.recipes.losses import (
    AUTOENCODER,
    StageModel,
    drawing_loss,
    feature_loss,
    see,
    silence,
    vision_model,
)
from benchmarks.recipes.mixture import LatentPool, mixed_batches, mixed_loss
from benchmarks.recipes.stages import Batch, Recipe, Setup, Stage
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.tokenizer import Tokenizer

from ..world import render_batch
from . import autoencoder
from .curriculum import CURRICULUM
from .networks import SHIFT, emoji_config, start_from_names
from .symbols import Symbols, symbol_features
from .tokenizer import emoji_tokenizer

DRAWS = 2  # noises for each text
NAME_DRAWS = 3  # the same, of the stage `names`

STAGES = {
    stage.name: stage
    for stage in (
        Stage("autoencoder", 2000, pictures=64, learning_rate=3e-3, seed=0),
        Stage(
            "names", 4000, 2, captions=32, learning_rate=1.5e-3, decay=0.35, ema=0.999, rates={"llm.embed": 6}, seed=1
        ),
        Stage(
            "drawing",
            5000,
            2,
            captions=24,
            edits=4,
            questions=6,
            learning_rate=1.5e-3,
            decay=0.35,
            ema=0.999,
            rates={"llm.embed": 3, "llm.layers": 0.2},
            seed=3,
        ),
        Stage("vision", 3000, pictures=64, learning_rate=1e-3, seed=2),
        Stage("joint", 1000, 2, captions=24, edits=6, questions=8, learning_rate=3e-4, ema=0.99, seed=4),
    )
}
POOL = (40_000, 10_000)  # captions and edits with their latents


def recipe(folder: Path, workers: int = 0) -> Recipe:
    """The stages in `folder`; for `workers` see `ahead`."""
    tokenizer = Tokenizer(emoji_tokenizer())
    end = [tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config = emoji_config(tokenizer.vocab_size, tuple(i for i in end if i is not None))
    sources = dict.fromkeys(COMPONENTS, "joint")
    sources |= dict.fromkeys(AUTOENCODER, "autoencoder")
    return Recipe(folder, config, tokenizer, STAGES, _SETUPS, sources, workers)


def _autoencoder(recipe: Recipe, stage: Stage) -> Setup:
    batches = partial(autoencoder.batch, stage.seed, stage.pictures)
    return Setup(StageModel(recipe.config, *AUTOENCODER), batches, autoencoder.loss)


def _names(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = StageModel(recipe.config, "llm", "diffusion_connector", "dit")
    start_from_names(model)
    model.llm.freeze()
    model.llm.embed_tokens.unfreeze()
    pool = _pool(recipe)
    alone = np.flatnonzero([len(scene.things) == 1 for scene in pool.sequences["captions"].drawn])

    def batches(step: int, part: int) -> Batch:
        return pool.batch("captions", np.random.default_rng([stage.seed, step, part]), stage.captions, alone)[0]

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        return drawing_loss(
            model, batch, None, batch["latents"], key, shift=SHIFT, draws=NAME_DRAWS, words_only=True
        ), {}

    return Setup(model, batches, loss)


def _drawing(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = StageModel(recipe.config, "llm", "lm_head", "diffusion_connector", "dit")
    silence(model.llm)
    model.update(tree_unflatten(recipe.weights("names", "llm", "diffusion_connector", "dit")))
    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), Symbols(recipe.tokenizer), phased=True),
        mixed_loss(stage, symbol_features, shift=SHIFT, draws=DRAWS),
    )


def _vision(recipe: Recipe, stage: Stage) -> Setup:
    language = StageModel(recipe.config, "llm")
    language.update(tree_unflatten(recipe.weights("drawing", "llm")))
    symbols = Symbols(recipe.tokenizer)

    def seen(rng: np.random.Generator, count: int) -> Batch:
        scenes = [autoencoder.any_scene(rng) for _ in range(count)]
        return {"pixels": render_batch(scenes), "symbols": symbols(scenes)}

    def batches(step: int, part: int) -> Batch:
        return seen(np.random.default_rng([stage.seed, step, part]), stage.pictures)

    def target(symbols: dict[str, mx.array]) -> mx.array:
        return symbol_features(language, symbols)

    first = tree_map(mx.array, seen(np.random.default_rng(stage.seed), 300))
    return Setup(
        vision_model(recipe.config, first["pixels"][:64]),
        batches,
        feature_loss(target, target(first["symbols"]).std()),
    )


def _joint(recipe: Recipe, stage: Stage) -> Setup:
    names = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")
    model = StageModel(recipe.config, *names)
    model.update(tree_unflatten(recipe.weights("vision", *names[:2])))
    model.update(tree_unflatten(recipe.weights("drawing", *names[2:])))

    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), render_batch),
        mixed_loss(stage, see, shift=SHIFT, draws=DRAWS),
    )


_SETUPS: dict[str, Callable[[Recipe, Stage], Setup]] = {
    "autoencoder": _autoencoder,
    "names": _names,
    "drawing": _drawing,
    "vision": _vision,
    "joint": _joint,
}


def _pool(recipe: Recipe) -> LatentPool:
    if "pool" not in recipe.shared:
        recipe.shared["pool"] = LatentPool(recipe, CURRICULUM, POOL, render_batch)
    return recipe.shared["pool"]
