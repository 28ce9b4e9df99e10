"""How the bundled model `emoji` was made: trained from random weights in stages, each of which can be resumed.

autoencoder  DC-AE on scenes; the latent space is fixed from here on.
decoder      its decoder alone, with more weight on the edges of pictures.
names        token embeddings, the connector and the DiT, on captions of one thing. The language model's layers are left
             out: before the embeddings say something they only blur them, and no name is learned.
drawing      the language model's layers and its head, the connector and the DiT, on captions, and on edits and
             questions with `symbols`, sums of these embeddings, as image features.
vision       the vision tower and the projector, towards these symbols. It learned where things are, and not which.
joint        everything but the autoencoder, on captions, edits and questions, with the vision tower's own features.
refining     the DiT alone, on captions and edits with symbols, in small batches.
answers      the language model and its head, on questions with symbols; what the DiT reads is to stay as it is.
looking      the vision tower and the projector, anew, towards these symbols, whose names it is to tell apart.
closer       the same, from there on, with more scenes of several small things, half of them worn as drawings are.
seeing       the language model, its head and the DiT, on captions, edits and questions with what the vision tower sees,
             where what the DiT reads of captions is to stay as it is.
telling      the language model and its head, on questions with what it sees; what the DiT reads is to stay as it is.
naming       the same, from there on, with what the tower sees after `closer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from benchmarks.recipes.losses import (
    AUTOENCODER,
    StageModel,
    conditioning_change,
    drawing_loss,
    feature_loss,
    question_loss,
    see,
    silence,
    trained,
    vision_model,
)
from benchmarks.recipes.mixture import LatentPool, latent_pool, mixed_batches, mixed_loss
from benchmarks.recipes.stages import Batch, Recipe, Setup, Stage, on_device
from mobileo_mlx.tokenizer import Tokenizer

from ..augment import worn
from ..world import Scene, render_batch
from . import autoencoder
from .autoencoder import ALONE, any_scene
from .curriculum import CURRICULUM
from .networks import SHIFT, emoji_config, start_from_names
from .symbols import Symbols, symbol_features
from .tokenizer import emoji_tokenizer

SEEING_ERROR = 0.2  # of image features, a standard deviation
KEPT = 10.0  # weight of `conditioning_change`
FRAME = 4  # pixels at the edges of pictures, where a decoder sees less of what is around
CLOSER_ALONE = 0.4  # share of scenes of one thing in the stage `closer`
DRAWS = 2  # noises for each text
NAME_DRAWS = 3  # the same, of the stage `names`

STAGES = {
    stage.name: stage
    for stage in (
        Stage("autoencoder", 960, pictures=64, learning_rate=3e-3, seed=0),
        Stage("decoder", 700, pictures=8, learning_rate=1e-3, ema=0.99, seed=7),
        Stage("names", 720, captions=512, learning_rate=2e-3, decay=0.4, ema=0.999, rates={"llm.embed": 5}, seed=1),
        Stage(
            "drawing",
            500,
            captions=320,
            edits=64,
            questions=96,
            learning_rate=1.5e-3,
            decay=0.4,
            ema=0.999,
            rates={"llm.layers": 0.4},
            seed=3,
        ),
        Stage("vision", 1300, pictures=160, learning_rate=1.5e-3, seed=2),
        Stage("joint", 160, captions=192, edits=64, questions=96, learning_rate=4e-4, ema=0.99, seed=4),
        Stage("answers", 2400, captions=16, edits=8, questions=40, learning_rate=1e-3, ema=0.99, seed=8),
        Stage("looking", 3600, parts=2, pictures=32, learning_rate=2e-3, seed=6),
        Stage("closer", 3000, pictures=32, learning_rate=1e-3, seed=11),
        Stage("refining", 760, captions=32, edits=4, learning_rate=8e-4, decay=0.8, ema=0.999, seed=5),
        Stage(
            "seeing",
            620,
            captions=12,
            edits=28,
            questions=24,
            learning_rate=6e-4,
            ema=0.99,
            rates={"dit": 0.3},
            seed=9,
        ),
        Stage("telling", 780, captions=8, edits=6, questions=48, learning_rate=1e-3, ema=0.99, seed=10),
        Stage("naming", 1000, parts=2, captions=8, edits=6, questions=48, learning_rate=1.2e-3, ema=0.99, seed=12),
    )
}
POOL = (20_000, 12_000)  # captions and edits with their latents
# What is seen of scenes, as NumPy arrays.
Shown = Callable[[Sequence[Scene], np.random.Generator], Any]


def recipe(folder: Path, workers: int = 0) -> Recipe:
    """The stages in `folder`; for `workers` see `ahead`."""
    tokenizer = Tokenizer(emoji_tokenizer())
    end = [tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config = emoji_config(tokenizer.vocab_size, tuple(i for i in end if i is not None))
    sources = dict.fromkeys(("vision_tower", "mm_projector"), "closer")
    sources |= {"llm": "naming", "lm_head": "naming", "diffusion_connector": "joint", "dit": "refining"}
    sources |= {"vae_encoder": "autoencoder", "vae_decoder": "decoder"}
    return Recipe(folder, config, tokenizer, STAGES, _SETUPS, sources, workers)


def _autoencoder(recipe: Recipe, stage: Stage) -> Setup:
    batches = partial(autoencoder.batch, stage.seed, stage.pictures)
    return Setup(StageModel(recipe.config, *AUTOENCODER), batches, autoencoder.loss)


def _decoder(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = trained(recipe, "autoencoder", *AUTOENCODER)
    model.vae_encoder.freeze()
    return Setup(model, partial(autoencoder.batch, stage.seed, stage.pictures, frame=FRAME), autoencoder.loss)


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
    model.llm.embed_tokens.freeze()  # the vision tower is trained towards them
    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), Symbols(recipe.tokenizer), phased=True),
        mixed_loss(stage, symbol_features, shift=SHIFT, draws=DRAWS),
    )


def _answers(recipe: Recipe, stage: Stage) -> Setup:
    model = trained(recipe, "joint", "llm", "lm_head", "diffusion_connector")
    before = trained(recipe, "joint", "llm")
    symbols = Symbols(recipe.tokenizer)
    return _answering(recipe, stage, model, before, lambda scenes, rng: symbols(scenes), symbol_features, SEEING_ERROR)


def _telling(recipe: Recipe, stage: Stage) -> Setup:
    return _told(recipe, stage, "looking", "seeing", _rendered)


def _naming(recipe: Recipe, stage: Stage) -> Setup:
    return _told(recipe, stage, "closer", "telling", _half_worn)


def _told(recipe: Recipe, stage: Stage, tower: str, language: str, shown: Shown) -> Setup:
    """`_answering` of what a vision tower sees; it and the language model are from these stages."""
    model: Any = _assembled(
        recipe,
        **{tower: ("vision_tower", "mm_projector"), language: ("llm", "lm_head")},
        joint=("diffusion_connector",),
    )
    model.vision_tower.freeze()
    model.mm_projector.freeze()
    return _answering(recipe, stage, model, trained(recipe, "seeing", "llm"), shown, see)


def _answering(
    recipe: Recipe,
    stage: Stage,
    model: Any,
    before: Any,
    shown: Shown,
    features: Callable[[Any, Any], mx.array],
    error: float = 0,
) -> Setup:
    """The language model and its head learn to answer, while what the DiT reads stays as it is.

    Args:
        before: the language model whose conditioning is to stay.
        features: the model and what is seen to image features (B, N, hidden_size).
        error: a standard deviation, of those that questions are about.
    """
    model.llm.embed_tokens.freeze()
    model.diffusion_connector.freeze()

    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        captions = CURRICULUM.captions(rng, recipe.tokenizer, stage.captions)
        edits = CURRICULUM.edits(rng, recipe.tokenizer, stage.edits)
        asked = CURRICULUM.questions(rng, recipe.tokenizer, stage.questions)
        return {
            "captions": captions.arrays(),
            "edits": {**edits.arrays(), "seen": shown(edits.seen, rng)},
            "questions": {**asked.arrays(), "seen": shown(asked.seen, rng)},
        }

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        captions, edits, questions = batch["captions"], batch["edits"], batch["questions"]
        seen = features(model, questions["seen"])
        ask = question_loss(model, questions, seen + error * mx.random.normal(seen.shape, key=key))
        caption = conditioning_change(model, before, captions, None)
        edit = conditioning_change(model, before, edits, features(model, edits["seen"]))
        return ask + KEPT * (caption + edit), {"ask": ask, "caption": caption, "edit": edit}

    return Setup(model, batches, loss)


def _refining(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = trained(recipe, "joint", "llm", "diffusion_connector", "dit")
    model.llm.freeze()
    model.diffusion_connector.freeze()
    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), Symbols(recipe.tokenizer)),
        mixed_loss(stage, symbol_features, shift=SHIFT, draws=DRAWS),
    )


def _vision(recipe: Recipe, stage: Stage) -> Setup:
    return _towards_symbols(recipe, stage, trained(recipe, "names", "llm"))


def _looking(recipe: Recipe, stage: Stage) -> Setup:
    language = trained(recipe, "answers", "llm")
    return _towards_symbols(
        recipe, stage, language, named=True, alone=lambda step: 0.9 if step < 0.5 * stage.steps else ALONE
    )


def _closer(recipe: Recipe, stage: Stage) -> Setup:
    language = trained(recipe, "answers", "llm")
    tower = trained(recipe, "looking", "vision_tower", "mm_projector")
    tower.train()  # BatchNorm learns its statistics
    return _towards_symbols(
        recipe, stage, language, named=True, alone=lambda step: CLOSER_ALONE, tower=tower, shown=_half_worn
    )


def _rendered(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    return render_batch(scenes)


def _half_worn(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """Pictures of scenes, the second half of them `worn`."""
    pictures = render_batch(scenes)
    some = pictures[len(pictures) // 2 :]
    some[:] = np.rint(255 * worn(some.astype(np.float32) / 255, rng))
    return pictures


def _towards_symbols(
    recipe: Recipe,
    stage: Stage,
    language: Any,
    *,
    named: bool = False,
    alone: Callable[[int], float] = lambda step: ALONE,
    tower: StageModel | None = None,
    shown: Shown = _rendered,
) -> Setup:
    """A vision tower that learns to see the symbols of scenes.

    Args:
        language: with the embeddings that they are made of.
        named: whether it is asked for names, see `kinds` of `feature_loss`.
        alone: the share of scenes of one thing, by the step; one is easier to tell from others than several.
        tower: to go on from; by default a new one.
    """
    symbols, target = Symbols(recipe.tokenizer), partial(symbol_features, language)
    kinds = symbols.directions(language) if named else None

    def seen(rng: np.random.Generator, count: int, share: float) -> Batch:
        scenes = [any_scene(rng, share) for _ in range(count)]
        told = {"kinds": symbols.kinds(scenes)} if named else {}
        return {"pixels": shown(scenes, rng), "symbols": symbols(scenes), **told}

    first = on_device(seen(np.random.default_rng(stage.seed), 300, ALONE))
    return Setup(
        vision_model(recipe.config, first["pixels"][:64]) if tower is None else tower,
        lambda step, part: seen(np.random.default_rng([stage.seed, step, part]), stage.pictures, alone(step)),
        feature_loss(target, target(first["symbols"]).std(), kinds),
    )


def _joint(recipe: Recipe, stage: Stage) -> Setup:
    model = _assembled(
        recipe, vision=("vision_tower", "mm_projector"), drawing=("llm", "lm_head", "diffusion_connector", "dit")
    )
    return Setup(
        model,
        mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), render_batch),
        mixed_loss(stage, see, shift=SHIFT, draws=DRAWS),
    )


def _seeing(recipe: Recipe, stage: Stage) -> Setup:
    model: Any = _assembled(
        recipe,
        looking=("vision_tower", "mm_projector"),
        answers=("llm", "lm_head"),
        joint=("diffusion_connector",),
        refining=("dit",),
    )
    for network in (model.vision_tower, model.mm_projector, model.llm.embed_tokens, model.diffusion_connector):
        network.freeze()
    before = trained(recipe, "answers", "llm")
    mixed = mixed_loss(stage, see, shift=SHIFT, draws=DRAWS, question_weight=1)

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        flow, parts = mixed(model, batch, key)
        change = conditioning_change(model, before, batch["captions"], None)
        return flow + KEPT * change, {**parts, "change": change}

    return Setup(model, mixed_batches(recipe, stage, CURRICULUM, _pool(recipe), render_batch), loss)


def _assembled(recipe: Recipe, **components: tuple[str, ...]) -> StageModel:
    """A model of the components that each of these stages ended with."""
    model = StageModel(recipe.config, *(name for names in components.values() for name in names))
    for stage, names in components.items():
        model.update(tree_unflatten(recipe.weights(stage, *names)))
    return model


_SETUPS: dict[str, Callable[[Recipe, Stage], Setup]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "names": _names,
    "drawing": _drawing,
    "vision": _vision,
    "joint": _joint,
    "answers": _answers,
    "looking": _looking,
    "closer": _closer,
    "seeing": _seeing,
    "telling": _telling,
    "naming": _naming,
    "refining": _refining,
}


def _pool(recipe: Recipe) -> LatentPool:
    return latent_pool(recipe, CURRICULUM, POOL, render_batch)
