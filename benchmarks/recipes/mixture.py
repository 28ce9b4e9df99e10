"""Stages that train drawing, editing and answering at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobileo_mlx.atomic import atomic_write
from mobileo_mlx.errors import CheckpointError
from mobileo_mlx.ops.backend import on_cpu

from .ahead import ahead
from .curriculum import Curriculum
from .losses import AUTOENCODER, drawing_loss, question_loss, trained
from .sequences import Sequences
from .stages import Batch, Loss, Recipe, Stage

QUESTION_WEIGHT = 0.3


class LatentPool:
    """Captions and edits with the latents of what they draw, computed once and kept in a file.

    Encoding anew in each step would cost more than the step. Of several processes the others wait for the first one.

    Args:
        recipe: whose autoencoder makes them; they are kept in its folder.
        curriculum: of the texts.
        size: captions and edits.
        pictures: scenes to pixels (B, H, W, 3) uint8.

    Raises:
        CheckpointError: the latents in the file are those of other texts, or there is no autoencoder yet.
    """

    def __init__(
        self,
        recipe: Recipe,
        curriculum: Curriculum,
        size: tuple[int, int],
        pictures: Callable[[Sequence[Any]], np.ndarray],
    ) -> None:
        kinds = {"captions": curriculum.captions, "edits": curriculum.edits}
        self.sequences = sequences = {
            kind: sample(np.random.default_rng([7, i]), recipe.tokenizer, count)
            for i, ((kind, sample), count) in enumerate(zip(kinds.items(), size, strict=True))
        }
        path = recipe.folder / "latents.npz"
        if mx.distributed.init().rank() == 0 and not path.exists():
            _write_latents(path, sequences, recipe, pictures)
        while not path.exists():
            time.sleep(1)
        stored = np.load(path)
        for kind, texts in sequences.items():
            if str(stored[f"{kind}_digest"]) != _digest(texts):
                raise CheckpointError(
                    f"'{path}' holds the latents of other {kind}; move it away, and they are made anew."
                )
        self._latents = {kind: stored[kind] for kind in sequences}
        self._rows = {kind: stored[f"{kind}_rows"] for kind in sequences}

    def batch(
        self, kind: str, rng: np.random.Generator, size: int, among: np.ndarray | None = None
    ) -> tuple[Batch, list[Any]]:
        """Random texts of a kind with "latents" (B, h, w, latent_channels) float32, and the scenes that they see.

        Args:
            among: the numbers of the texts to choose from; by default all.
        """
        sequences = self.sequences[kind]
        rows = rng.integers(len(sequences.ids) if among is None else len(among), size=size)
        rows = rows if among is None else among[rows]
        latents = self._latents[kind][self._rows[kind][rows]].astype(np.float32)
        return {**sequences.arrays(rows), "latents": latents}, [
            sequences.seen[i] for i in rows
        ] if sequences.seen else []


def latent_pool(
    recipe: Recipe, curriculum: Curriculum, size: tuple[int, int], pictures: Callable[[Sequence[Any]], np.ndarray]
) -> LatentPool:
    """The pool of all stages that this process runs; see `LatentPool`."""
    if "pool" not in recipe.shared:
        recipe.shared["pool"] = LatentPool(recipe, curriculum, size, pictures)
    return recipe.shared["pool"]


def _write_latents(path: Path, sequences: Mapping[str, Sequences], recipe: Recipe, pictures: Any) -> None:
    """Writes for each kind the latents of all its different scenes, float16, and for each text the row of its own."""
    model: Any = trained(recipe, "autoencoder", *AUTOENCODER)
    encode = model.eval().vae_encoder
    arrays: dict[str, Any] = {}
    for kind, texts in sequences.items():
        scenes = list(dict.fromkeys(texts.drawn))
        number = {scene: i for i, scene in enumerate(scenes)}
        arrays[kind] = _encoded(recipe, encode, scenes, pictures)
        arrays[f"{kind}_rows"] = np.array([number[scene] for scene in texts.drawn])
        arrays[f"{kind}_digest"] = np.array(_digest(texts))
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def _encoded(recipe: Recipe, encode: Any, scenes: Sequence[Any], pictures: Any) -> np.ndarray:
    """The latents of scenes, float16."""
    count = 16 if on_cpu() else 256  # pictures at a time
    parts = [scenes[i : i + count] for i in range(0, len(scenes), count)]
    made = ahead(lambda i, _: pictures(parts[i]), recipe.workers, len(parts))
    images = (mx.array(made(i, 0)).astype(mx.float32) / 127.5 - 1 for i in range(len(parts)))
    return np.concatenate([np.array(encode(image).astype(mx.float16)) for image in images])


def _digest(texts: Sequences) -> str:
    """Changes with the texts, their tokens and what they draw."""
    return hashlib.sha256(texts.ids.tobytes() + repr(texts.drawn).encode()).hexdigest()


def mixed_batches(
    recipe: Recipe,
    stage: Stage,
    curriculum: Curriculum,
    pool: LatentPool,
    shown: Callable[[Sequence[Any]], Any],
    *,
    phased: bool = False,
) -> Callable[[int, int], Batch]:
    """Captions and edits from a pool, and new questions where the stage has some.

    Args:
        shown: what edits and questions see of scenes, NumPy arrays.
        phased: whether questions change in the course of the stage; otherwise they are those of the last phase.
    """

    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        captions, _ = pool.batch("captions", rng, stage.captions)
        edits, scenes = pool.batch("edits", rng, stage.edits)
        batch: Batch = {"captions": captions, "edits": {**edits, "seen": shown(scenes)}}
        if stage.questions:
            asked = curriculum.questions(rng, recipe.tokenizer, stage.questions, step / stage.steps if phased else 1)
            batch["questions"] = {**asked.arrays(), "seen": shown(asked.seen)}
        return batch

    return batches


def mixed_loss(
    stage: Stage,
    see: Callable[[Any, Any], mx.array],
    *,
    shift: float,
    draws: int = 1,
    question_weight: float = QUESTION_WEIGHT,
) -> Loss:
    """Flow matching of captions and edits, and the cross-entropy of answers where there are questions.

    Args:
        see: the model and what is shown to image features (B, N, hidden_size).
        shift, draws: see `drawing_loss`.
        question_weight: of the cross-entropy, that of flow matching being 1.
    """

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        caption_key, edit_key = mx.random.split(key)
        captions, edits = batch["captions"], batch["edits"]
        options: dict[str, Any] = {"shift": shift, "draws": draws}
        draw = drawing_loss(model, captions, None, captions["latents"], caption_key, **options)
        edit = drawing_loss(model, edits, see(model, edits["seen"]), edits["latents"], edit_key, **options)
        flow = (draw * stage.captions + edit * stage.edits) / (stage.captions + stage.edits)
        parts = {"draw": draw, "edit": edit}
        if "questions" not in batch:
            return flow, parts
        ask = question_loss(model, batch["questions"], see(model, batch["questions"]["seen"]))
        return flow + question_weight * ask, {**parts, "ask": ask}

    return loss
